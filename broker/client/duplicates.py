"""An annotation is in several topics: which of those that a subscription reads gives it, so that it comes once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from broker.publish.annotation import PublishedAnnotation
from broker.topic_names import is_pattern, matches


def is_first(annotation: PublishedAnnotation, subscribed: Sequence[str], visible: Collection[str]) -> bool:
    """Whether the topic that an annotation was read from is the first of its own that are ``subscribed`` to.

    A pattern takes only ``visible`` topics: those that the subscriber may read. Always true where the topic is not
    among the annotation's own: of an earlier release, or of a topic copied elsewhere.
    """
    if annotation.topic not in annotation.topics or (len(subscribed) == 1 and not is_pattern(subscribed[0])):
        return True
    return annotation.topic == next(
        (
            name
            for topic in subscribed
            for name in annotation.topics
            if matches(topic, name) and (name in visible or not is_pattern(topic))
        ),
        annotation.topic,
    )
