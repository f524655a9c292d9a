"""Optimisers and schedules."""

from .build import build_optimizer, with_iteration_schedule

__all__ = ["build_optimizer", "with_iteration_schedule"]
