"""The head for streams: metadata encoder and classifier, trained on what alerts carry, on frozen encoders.

The encoders of light curves and spectra are those of a model repository and stay as they are. What is trained anew is
what turns colours, counts and a few detections into an answer: the metadata encoder and the classifier. They learn from

- stars of ASAS and Catalina (``training.datasets.tables``): whole light curves and first, stretched and random parts of
  them, with catalogue values of their own or of a donor of their class, and in half of the cases with only the colours
  and magnitudes that a packet has, computed from the donor's BP - RP by published transformations;
- real stars in several bands and real ZTF packets (``training.datasets.multiband``), whole and cut.

Real stars are few, so every score on them is cross-validated: FOLDS models, each scored on the stars it has not seen,
and one of all stars, which is what is published. Temperatures and prediction sets come from the stars that each model
had not seen, by modalities and number of detections.
"""

from training.stream.run import Keep, train_stream

__all__ = ["Keep", "train_stream"]
