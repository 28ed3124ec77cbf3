"""All lessons, in the order of the tour."""

from tour.lesson import Concept, Lesson
from tour.lessons import (
    beat,
    canvas,
    errors,
    execution,
    limits,
    mistakes,
    monitoring,
    practices,
    results,
    routing,
    serialisation,
    signatures,
    states,
    workers,
)

CONCEPTS: list[Concept] = [
    module.CONCEPT
    for module in (
        execution,
        states,
        signatures,
        canvas,
        beat,
        errors,
        limits,
        results,
        routing,
        workers,
        serialisation,
        monitoring,
        practices,
        mistakes,
    )
]
LESSONS: dict[str, Lesson] = {lesson.name: lesson for concept in CONCEPTS for lesson in concept.lessons}
