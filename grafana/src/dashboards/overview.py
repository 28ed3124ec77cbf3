"""Overview: the health of the stack at a glance. The current state on top, below its history by queue."""

from itertools import pairwise

from grafana_foundation_sdk.builders import common, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import Dashboard, Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.common import ScaleDistribution
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DynamicConfigValue, GridPos, Panel

from queues import QUEUES

from .panels import Query, fixed, graph, number, only_for_this, setting, stacked, timeline

WIDTH = 24  # columns of Grafana's grid
NUMBER_HEIGHT, GRAPH_HEIGHT = 4, 7  # rows of about 38 px: numbers and three rows of graphs fill a 1920x1080 screen

# By priority, 0 (the most urgent) to 9.
PRIORITIES = (
    "dark-red",
    "red",
    "orange",
    "light-orange",
    "yellow",
    "green",
    "dark-green",
    "light-blue",
    "blue",
    "purple",
)
PER_SECOND = "suffix:/s"
PER_MINUTE = "suffix:/min"

WAIT = "queue:celery_task_queue_wait_seconds:quantile_rate1m"
OLDEST = 'max(celery_queue_oldest_message_age_seconds{queue="$queue"})'
BEAT_OVERDUE = (
    "max(celery_beat_overdue_seconds) > time() - max(celery_beat_last_tick_timestamp_seconds) "
    "or time() - max(celery_beat_last_tick_timestamp_seconds)"
)
CONSUMERS = 'max(celery_queue_consumers{queue="$queue"})'
# Only while workers report runs: without `and` the rate over 5 m would show 0 for 5 m after the last worker is gone.
FAILURE_SHARE = (
    'max(queue:celery_task_failures:ratio_rate5m{queue="$queue"} and on (queue) group by (queue) (celery_tasks_total))'
)


def each_queue(expr: str) -> list[Query]:
    """The query for each queue, in the same order on all panels; `$queue` is replaced by its name."""
    return [(expr.replace("$queue", queue.name), queue.name) for queue in QUEUES]


def limits(panel: stat.Panel, share: float) -> stat.Panel:
    """Each queue's own thresholds in seconds: red at a share of its max_wait, yellow at a fifth of that."""
    for queue in QUEUES:
        red = queue.max_wait * share
        panel = panel.override_by_name(queue.name, [only_for_this([(0, "green"), (red / 5, "yellow"), (red, "red")])])
    return panel


def now() -> list[Builder[Panel]]:
    """The top row: the current state."""
    return [
        number(
            "Alerts firing",
            "Firing alerts of prometheus/rules/alerts.yml; Prometheus' page /alerts lists them with what to do.",
            [('count(ALERTS{alertstate="firing"}) or vector(0)', "")],
            "none",
            [(0, "green"), (1, "red")],
        ),
        number(
            "Targets down",
            "Running containers that do not answer Prometheus. Missing containers are shown below, in Targets.",
            [("count(up == 0) or 0 * count(up)", "")],
            "none",
            [(0, "green"), (1, "red")],
        ),
        number(
            "Consumers",
            "Workers connected to the broker that consume the queue. Scaled to zero or killed: 0.",
            each_queue(CONSUMERS),
            "none",
            [(0, "red"), (1, "green")],
        ),
        limits(
            number(
                "Oldest message",
                "How long the message at the head of the queue has waited. Red when OldestMessageTooOld fires "
                "(max_wait of the queue in services/celery/queues.py).",
                each_queue(OLDEST),
                "s",
                [(0, "green")],
            ).decimals(0),
            share=1,
        ),
        limits(
            number(
                "Wait, p95",
                "19 of 20 tasks of the last minute started within this time after they were due. Red: a third of the "
                "limit of the oldest message. No data: no task ran.",
                each_queue(f'max({WAIT}{{queue="$queue", quantile="0.95"}})'),
                "s",
                [(0, "green")],
            ),
            share=1 / 3,
        ),
        number(
            "Failed runs",
            "Share of the runs of the last 5 minutes "
            "(those of the demo tasks, which fail on purpose, do not count) "  # demo
            "that failed, hit the hard time limit, were rejected or lost their process.",
            each_queue(FAILURE_SHARE),
            "percentunit",
            [(0, "green"), (0.01, "yellow"), (0.05, "red")],
        ).decimals(1),
        number(
            "Beat overdue",
            "How long an entry has been due and unsent, or beat has not checked its schedule, which it does every "
            "5 s; a scrape may add 5 s.",
            [(BEAT_OVERDUE, "")],
            "s",
            [(0, "green"), (12, "yellow"), (15, "red")],
        ).decimals(0),
        number(
            "Redis memory",
            "Share of maxmemory in use. A full Redis refuses writes: publishing fails and workers exit.",
            [
                (f'redis_memory_used_bytes{{instance="{redis}"}} / (redis_memory_max_bytes > 0)', redis)
                for redis in ("redis", "redis-results")
            ],
            "percentunit",
            [(0, "green"), (0.6, "yellow"), (0.8, "red")],
        ).decimals(0),
    ]


def queues() -> list[Builder[Panel]]:
    """Arrival and service rates, and wait times."""
    return [
        by_queue(
            graph(
                "Arrival and service",
                "Messages published (dashed) and runs ended (solid) per second, both with retries. The backlog grows "
                "while more messages arrive than are served.",
                [
                    ("queue:celery_tasks:rate1m", "{{queue}} served"),
                    ("queue:celery_published:rate1m", "{{queue}} arriving"),
                ],
                PER_SECOND,
            )
        ).override_by_regexp("/arriving/", [setting("custom.lineStyle", {"fill": "dash", "dash": [6, 4]}), no_fill()]),
        *(waits(queue.name) for queue in QUEUES),
        by_queue(
            graph(
                "Oldest message",
                "How long the message at the head of each queue has waited; 0 is an empty queue.",
                each_queue(OLDEST),
                "s",
            )
        ),
    ]


def work() -> list[Builder[Panel]]:
    """The backlog and the workers."""
    return [
        *(backlog(queue.name) for queue in QUEUES),
        by_queue(
            graph(
                "Failed runs",
                "Share of the runs of the last 5 minutes "
                "(those of the demo tasks, which fail on purpose, do not count) "  # demo
                "that failed, hit the hard time limit, were rejected or lost their process.",
                each_queue(FAILURE_SHARE),
                "percentunit",
            ).axis_soft_max(0.05)
        ),
        by_queue(
            graph(
                "Worker slots",
                "Tasks that all workers of a queue can run at once (dashed), and running tasks (solid). If all slots "
                "are busy while messages wait, add workers.",
                [
                    ("sum by (job) (celery_worker_slots_busy)", "{{job}} busy"),
                    ("sum by (job) (celery_worker_slots)", "{{job}} total"),
                ],
                "none",
            )
        ).override_by_regexp("/total/", [setting("custom.lineStyle", {"fill": "dash", "dash": [6, 4]}), no_fill()]),
    ]


def parts() -> list[Builder[Panel]]:
    """Workers, beat, producer and Redis."""
    return [
        by_queue(
            graph(
                "Consumers",
                "Workers connected to the broker, by queue: follows `make scale`; a killed worker is not counted at "
                "the next scrape.",
                each_queue(CONSUMERS),
                "none",
            )
        ).decimals(0),
        graph(
            "Beat",
            "How late each entry was last sent, how long one has been due and unsent, and the time since beat last "
            "checked its schedule, which it does every 5 s.",
            [
                ("max by (entry) (celery_beat_lateness_seconds)", "{{entry}}"),
                ("max(celery_beat_overdue_seconds)", "overdue"),
                ("time() - max(celery_beat_last_tick_timestamp_seconds)", "since the last tick"),
            ],
            "s",
            last=False,
        )
        .override_by_name("since the last tick", [fixed("gray"), no_fill()])
        .override_by_name("overdue", [fixed("red")]),
        # >>> demo
        by_queue(
            graph(
                "Producer",
                "Messages that Redis accepted, by queue; publishes that raised; messages skipped while Redis was "
                "unavailable. Shaded: paused because the queue is too deep (back-pressure).",
                [
                    ('sum by (queue) (rate(celery_published_total{job="producer"}[1m]))', "to {{queue}}"),
                    (
                        'sum(rate(celery_publish_failures_total{job="producer"}[1m])) '
                        'or 0 * count(up{job="producer"} == 1)',
                        "failed",
                    ),
                    ('sum(rate(celery_producer_unpublished_total{job="producer"}[1m]))', "skipped"),
                    ("max by (queue) (celery_producer_throttled)", "{{queue}} throttled"),
                ],
                PER_SECOND,
                last=False,
            )
        )
        .override_by_name("failed", [fixed("red")])
        .override_by_name("skipped", [fixed("purple")])
        .override_by_regexp(
            "/throttled/",
            [
                setting("custom.axisPlacement", "hidden"),
                setting("max", 1),
                setting("unit", "bool_yes_no"),
                setting("custom.lineWidth", 0),
                setting("custom.fillOpacity", 25),
                setting("custom.lineInterpolation", "stepAfter"),
            ],
        ),
        # <<< demo
        graph(
            "Redis memory",
            "Used memory; REDIS_MAXMEMORY in .env is the limit. It grows with the backlog (redis), with results and "
            "the outbox (redis-results).",
            [("redis_memory_used_bytes", "{{instance}}")],
            "bytes",
        ),
    ]


def below() -> list[Builder[Panel]]:
    """Second screen: details."""
    return [
        graph(
            "Unacknowledged messages",
            "Messages that workers hold, and those of them that wait for a slot or their ETA.",
            [
                ("max(celery_unacked_messages)", "unacknowledged"),
                ("sum by (job) (celery_worker_prefetched_messages)", "{{job}} prefetched"),
            ],
            "none",
        ),
        graph(
            "Outcomes",
            "Runs of all tasks that ended, by outcome.",
            [("sum by (outcome) (rate(celery_tasks_total[1m])) * 60", "{{outcome}}")],
            PER_MINUTE,
        ),
        graph(
            "Redis clients",
            "Connections to each Redis. A worker holds about 10 to the broker.",
            [("redis_connected_clients", "{{instance}}")],
            "none",
        ),
        timeline(
            "Targets",
            "Containers of each service that answer Prometheus. Red: containers run, but none answers. Empty: no "
            "containers.",
            [("sum by (job) (up)", "{{job}}")],
        ),
    ]


def delivery() -> list[Builder[Panel]]:
    """Dead letters and the outbox."""
    return [
        graph(
            "Dead letters",
            "Messages in the stream of dead letters: `make dlq` lists them with their reasons.",
            [("max(celery_dead_letters)", "dead letters")],
            "none",
        ).override_by_name("dead letters", [fixed("red")]),
        graph(
            "Published again",
            "Tasks that were written to the outbox, and those that were published again because their message was "
            "lost: after a fault, with no effect but a delay.",
            [
                ("sum(rate(celery_outbox_written_total[1m])) * 60 or 0 * count(up)", "written"),
                ("sum(rate(celery_outbox_republished_total[1m])) * 60 or 0 * count(up)", "published again"),
            ],
            PER_MINUTE,
        ).override_by_name("published again", [fixed("red")]),
    ]


def waits(queue: str) -> timeseries.Panel:
    """Wait quantiles of a queue, on a logarithmic scale: idle and full queues differ by four orders of magnitude."""
    panel = graph(
        f"Wait, {queue}",
        "From when a task was due (published, ETA, retry or redelivery) until it ran, over 1 minute. Half, 95 and 99 "
        "of 100 tasks waited less. No line: no task ran. Logarithmic scale.",
        [(f'{WAIT}{{queue="{queue}", quantile="{q}"}}', f"p{q[2:]:0<2}") for q in ("0.99", "0.95", "0.5")],
        "s",
    )
    scale = common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
    panel = panel.min(0.001).scale_distribution(scale).fill_opacity(0)
    for name, color in (("p99", "red"), ("p95", "orange"), ("p50", "green")):
        panel = panel.override_by_name(name, [fixed(color)])
    return panel


def backlog(queue: str) -> timeseries.Panel:
    """Waiting messages of a queue, stacked by priority."""
    query = f'sum by (priority) (max by (queue, priority) (celery_queue_messages{{queue="{queue}", state="waiting"}}))'
    panel = stacked(
        graph(
            f"Backlog, {queue}, by priority",
            "Messages that wait for a worker, stacked by priority: 0 is the most urgent, 9 the least, 5 the default.",
            [(query, "{{priority}}")],
            "short",
            last=False,
        )
    )
    for priority, color in enumerate(PRIORITIES):
        panel = panel.override_by_name(str(priority), [fixed(color)])
    return panel.axis_soft_max(10)


def by_queue(panel: timeseries.Panel) -> timeseries.Panel:
    """Each queue and its workers in one colour on all panels."""
    for queue in QUEUES:
        panel = panel.override_by_regexp(f"/\\b{queue.name}\\b/", [fixed(queue.color)])
    return panel


def no_fill() -> DynamicConfigValue:
    """A line only."""
    return setting("custom.fillOpacity", 0)


def overview() -> Dashboard:
    """The dashboard that Grafana opens with."""
    dashboard = (
        Dashboard("Overview")
        .uid("overview")
        .description("Celery on Redis: golden signals by queue, workers, beat, Redis.")
        .tags(["celery"])
        .time("now-15m", "now")
        .refresh("5s")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
    )
    y, panel_id = 0, 1
    for row, height, panels in (
        ("", NUMBER_HEIGHT, now()),
        ("", GRAPH_HEIGHT, queues()),
        ("", GRAPH_HEIGHT, work()),
        ("", GRAPH_HEIGHT, parts()),
        ("Details", GRAPH_HEIGHT, below()),
        ("", GRAPH_HEIGHT, delivery()),
    ):
        if row:
            dashboard.with_row(Row(row).id(panel_id).grid_pos(GridPos(x=0, y=y, w=WIDTH, h=1)))
            y, panel_id = y + 1, panel_id + 1
        edges = [WIDTH * column // len(panels) for column in range(len(panels) + 1)]
        for (left, right), panel in zip(pairwise(edges), panels, strict=True):
            built = panel.build()
            built.id_val, built.grid_pos = panel_id, GridPos(x=left, y=y, w=right - left, h=height)
            dashboard.with_panel(Placed(built))
            panel_id += 1
        y += height
    return dashboard


class Placed(Builder[Panel]):
    """A finished panel, for the dashboard's builder."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def build(self) -> Panel:
        """The panel itself."""
        return self._panel
