"""Celery on Redis that loses no task and applies none twice: see README.md."""

from celery_durable.config import Config
from celery_durable.durable import Durable
from celery_durable.errors import (
    BatchPublishError,
    ConfigError,
    DangerousSettingsError,
    DelayTooLongError,
    EffectFailedError,
    MessageTooLargeError,
    NotInOutboxError,
    PublishRefusedError,
    ResultTooLargeError,
)
from celery_durable.install import install
from celery_durable.once import Once, atomically, once
from celery_durable.periodic import PeriodicTask
from celery_durable.schedules import every, zoned

__all__ = [
    "BatchPublishError",
    "Config",
    "ConfigError",
    "DangerousSettingsError",
    "DelayTooLongError",
    "Durable",
    "EffectFailedError",
    "MessageTooLargeError",
    "NotInOutboxError",
    "Once",
    "PeriodicTask",
    "PublishRefusedError",
    "ResultTooLargeError",
    "atomically",
    "every",
    "install",
    "once",
    "zoned",
]
