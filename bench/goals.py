"""What is wanted, as ratios in one run. Nothing fails if a goal is missed: the report says so."""

from bench.report import Goal

GOALS = (
    Goal(measurement="drain", column="rate", contender="atomic prefork", over="stock prefork", least=3.5),
    Goal(measurement="drain", column="rate", contender="atomic solo", over="stock solo", least=5),
    Goal(measurement="drain", column="rate", contender="atomic tuned solo", over="stock solo", least=5),
    Goal(measurement="drain", column="rate", contender="atomic solo", over="dramatiq 8 threads", least=1.5),
    Goal(measurement="drain", column="rate", contender="atomic solo", over="dramatiq 16 threads", least=1.5),
    Goal(measurement="drain", column="rate", contender="atomic tuned solo", over="dramatiq 16 threads", least=1.5),
    Goal(measurement="drain", column="cpu", contender="atomic prefork", over="stock prefork", most=0.40),
    Goal(measurement="drain", column="cpu", contender="atomic solo", over="stock solo", most=0.20),
    Goal(measurement="enqueue", column="rate", contender="atomic batch prefork", over="stock prefork", least=5),
    Goal(measurement="enqueue", column="rate", contender="effect outbox prefork", over="atomic prefork", least=0.8),
    Goal(measurement="latency", column="p50", contender="atomic prefork", over="stock prefork", most=1.05),
    Goal(measurement="latency", column="p99", contender="atomic prefork", over="stock prefork", most=1.2),
    Goal(measurement="latency", column="p50", contender="atomic solo", over="stock solo", most=1.05),
    Goal(measurement="latency", column="p99", contender="atomic solo", over="stock solo", most=1.2),
    Goal(measurement="due", column="p99", contender="atomic prefork", most=1000),
    Goal(measurement="due", column="p99", contender="atomic delayed prefork", most=1000),
    Goal(measurement="isolation", column="ratio", contender="atomic queues", most=1.5),
    Goal(measurement="delayed", column="rate", contender="atomic delayed prefork", over="atomic prefork", least=0.95),
    Goal(measurement="delayed", column="rate", contender="atomic delayed solo", over="atomic solo", least=0.95),
    Goal(measurement="delayed", column="memory", contender="atomic delayed prefork", over="atomic prefork", most=1.01),
    Goal(measurement="delayed", column="memory", contender="atomic delayed solo", over="atomic solo", most=1.01),
    Goal(measurement="stack", column="rate", contender="the stack", over="stock as documented", least=2),
    Goal(measurement="scale", column="rate", contender="8 containers", over="1 containers", least=7.6),
    Goal(measurement="scale", column="part", contender="8 containers", least=0.95),
    Goal(measurement="options", column="rate", contender="atomic metrics prefork", over="atomic prefork", least=0.95),
    Goal(measurement="options", column="rate", contender="atomic metrics solo", over="atomic solo", least=0.95),
)
