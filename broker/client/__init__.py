"""What a subscriber to Trifid imports."""

from broker.client.expression import Expression, ExpressionError
from broker.client.filters import Cone, Filter
from broker.client.foreign import ForeignMessage
from broker.client.subscription import Subscription
from broker.publish.annotation import PublishedAnnotation
from broker.records import Neighbour

__all__ = [
    "Cone",
    "Expression",
    "ExpressionError",
    "Filter",
    "ForeignMessage",
    "Neighbour",
    "PublishedAnnotation",
    "Subscription",
]
