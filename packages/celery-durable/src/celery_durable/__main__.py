"""`python -m celery_durable -A APP COMMAND …`: commands for operators."""

import argparse
import os
import sys

from celery.app.utils import find_app

from celery_durable import delayed, dlq


def main(arguments: list[str]) -> int:
    """Run a command. Returns its exit code: 2 for a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="celery_durable", description=__doc__)
    parser.add_argument("-A", "--app", default=os.environ.get("CELERY_APP"), help="the app, as for celery (CELERY_APP)")
    commands = parser.add_subparsers(dest="command", required=True)
    dead_letters = commands.add_parser(
        "dlq", description=dlq.__doc__, help="dead letters", formatter_class=argparse.RawTextHelpFormatter
    )
    dlq.add_arguments(dead_letters)
    waiting = commands.add_parser(
        "delayed", description=delayed.__doc__, help="delayed messages", formatter_class=argparse.RawTextHelpFormatter
    )
    delayed.add_arguments(waiting)
    options = parser.parse_args(arguments)
    if not options.app:
        parser.error("no app given: use -A MODULE, or set CELERY_APP")
    sys.path.insert(0, os.getcwd())
    try:
        app = find_app(options.app)
    except (ImportError, AttributeError) as error:
        parser.error(f"-A {options.app}: {error}")
    if not hasattr(app, "durable"):
        parser.error(f"-A {options.app}: celery_durable.install was not called for this app")
    app.loader.import_default_modules()
    return delayed.run(app, options) if options.command == "delayed" else dlq.run(app, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
