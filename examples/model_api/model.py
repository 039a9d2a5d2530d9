"""A scikit-learn model that classifies irises by the size of their sepals and petals. It knows nothing about users."""

import math
from functools import cache

from sklearn.datasets import load_iris  # type: ignore[import-untyped]  # scikit-learn has no types
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # as above
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]  # as above
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # as above

MEASUREMENTS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
"""In centimeters, in the order of Fisher's data set."""


@cache
def train_model() -> Pipeline:
    iris = load_iris()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(iris.data, iris.target_names[iris.target])


def classify(flower: object) -> str:
    """Return "setosa", "versicolor" or "virginica" for an object with the four `MEASUREMENTS`.

    Raises:
        ValueError: if a measurement is missing or not a finite number.
    """
    fields = flower if isinstance(flower, dict) else {}
    measurements = [length for name in MEASUREMENTS if isinstance(length := fields.get(name), int | float)]
    if len(measurements) != len(MEASUREMENTS) or not all(map(math.isfinite, measurements)):
        raise ValueError(f"{', '.join(MEASUREMENTS)} are required, each as a number in centimeters")
    (name,) = train_model().predict([measurements])
    return str(name)
