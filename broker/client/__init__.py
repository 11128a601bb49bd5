"""What a subscriber to Trifid imports."""

from broker.client.expression import Expression, ExpressionError
from broker.client.feedback import FeedbackAnswer, FeedbackResult, feedback_answers, give_feedback, undo_feedback
from broker.client.filters import Cone, Filter, Region
from broker.client.foreign import ForeignMessage
from broker.client.lag import Lag, group_lag, move_group
from broker.client.plot import fetch_object, plot_light_curve, plot_object
from broker.client.similar import similar_objects
from broker.client.subscription import Subscription
from broker.client.tables import to_astropy, to_pandas, to_polars
from broker.publish.annotation import PublishedAnnotation
from broker.records import Neighbour
from broker.similar.answer import SimilarObject

__all__ = [
    "Cone",
    "Expression",
    "ExpressionError",
    "FeedbackAnswer",
    "FeedbackResult",
    "Filter",
    "ForeignMessage",
    "Lag",
    "Neighbour",
    "PublishedAnnotation",
    "Region",
    "SimilarObject",
    "Subscription",
    "feedback_answers",
    "fetch_object",
    "give_feedback",
    "group_lag",
    "move_group",
    "plot_light_curve",
    "plot_object",
    "similar_objects",
    "to_astropy",
    "to_pandas",
    "to_polars",
    "undo_feedback",
]
