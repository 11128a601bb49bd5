"""What a subscriber to Trifid imports."""

from broker.client.subscription import ForeignMessage, Subscription
from broker.publish.annotation import PublishedAnnotation
from broker.records import Neighbour

__all__ = ["ForeignMessage", "Neighbour", "PublishedAnnotation", "Subscription"]
