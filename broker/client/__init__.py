"""What a subscriber to Trifid imports."""

from broker.client.expression import Expression, ExpressionError
from broker.client.filters import Cone, Filter
from broker.client.foreign import ForeignMessage
from broker.client.lag import Lag, group_lag
from broker.client.plot import fetch_object, plot_light_curve, plot_object
from broker.client.similar import SimilarObject, similar_objects
from broker.client.subscription import Subscription
from broker.client.tables import to_astropy, to_pandas, to_polars
from broker.publish.annotation import PublishedAnnotation
from broker.records import Neighbour

__all__ = [
    "Cone",
    "Expression",
    "ExpressionError",
    "Filter",
    "ForeignMessage",
    "Lag",
    "Neighbour",
    "PublishedAnnotation",
    "SimilarObject",
    "Subscription",
    "fetch_object",
    "group_lag",
    "plot_light_curve",
    "plot_object",
    "similar_objects",
    "to_astropy",
    "to_pandas",
    "to_polars",
]
