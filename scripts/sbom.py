"""`make sbom`: writes the Debian and Python packages of each image of the stack to sbom/, as CycloneDX JSON.

Arguments: the images. It reads their file systems and runs nothing in them. Programs that come without a package, such
as those of Prometheus' own image, are not listed.
"""

import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from pathlib import Path

from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

FOLDER = Path("sbom")
DPKG = re.compile(r"var/lib/dpkg/status(\.d/[^/]+(?<!\.md5sums))?")  # status.d: images without dpkg itself
PYTHON = re.compile(r".*\.(dist-info/METADATA|egg-info/PKG-INFO)")


def docker(*arguments: str) -> str:
    """What a docker command prints. Raises SystemExit with its error."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"sbom: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def file_system(image: str) -> Iterator[tarfile.TarFile]:
    """The files of an image."""
    container = docker("create", "--pull=never", "--network=none", image, "never-started")
    try:
        with (
            subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export,
            tarfile.open(fileobj=export.stdout, mode="r|") as files,
        ):
            yield files
    finally:
        docker("rm", container)


def debian(status: bytes) -> Iterator[Component]:
    """The installed packages of a status file of dpkg: paragraphs with the syntax of an e-mail's header."""
    for paragraph in re.split(rb"\n\n+", status.strip()):
        package = BytesParser().parsebytes(paragraph)
        if package.get("Status", "ok installed").endswith(" installed"):
            name, version, architecture = (package[field] for field in ("Package", "Version", "Architecture"))
            url = PackageURL("deb", "debian", name, version, {"arch": architecture})
            yield Component(name=name, version=version, purl=url, bom_ref=str(url))


def python(metadata: bytes) -> Component:
    """The package that this metadata describes."""
    package = BytesParser().parsebytes(metadata, headersonly=True)
    url = PackageURL("pypi", None, package["Name"], package["Version"])
    return Component(name=package["Name"], version=package["Version"], purl=url, bom_ref=str(url))


def packages(files: tarfile.TarFile) -> Iterator[Component]:
    """The packages of a file system."""
    for member in files:
        file = files.extractfile(member) if member.isfile() else None
        if file and DPKG.fullmatch(member.name):
            yield from debian(file.read())
        elif file and PYTHON.fullmatch(member.name):
            yield python(file.read())


def main(images: list[str]) -> None:
    """Write a file for each image, named by the last part of its name."""
    FOLDER.mkdir(exist_ok=True)
    for image in images:
        identity = docker("image", "inspect", "--format={{.Id}}", image)
        with file_system(image) as files:
            bom = Bom(components={component.bom_ref.value: component for component in packages(files)}.values())
        bom.metadata.component = Component(name=image, version=identity, type=ComponentType.CONTAINER, bom_ref=image)
        bom.register_dependency(bom.metadata.component, bom.components)
        name = re.split("[:@]", image.rpartition("/")[2])[0]
        (FOLDER / f"{name}.json").write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
        print(f"sbom: {FOLDER}/{name}.json, {len(bom.components)} packages of {image}")


if __name__ == "__main__":
    main(sys.argv[1:])
