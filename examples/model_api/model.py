"""A model of scikit-learn that tells irises apart by the lengths of their leaves. It knows nothing of users."""

import math
from functools import cache

from sklearn.datasets import load_iris  # type: ignore[import-untyped]  # as all of scikit-learn
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.pipeline import Pipeline, make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]

MEASUREMENTS = ("sepal_length", "sepal_width", "petal_length", "petal_width")
"""In centimetres, in the order of Fisher's data set."""


@cache
def trained() -> Pipeline:
    iris = load_iris()
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(iris.data, iris.target_names[iris.target])


def species(flower: object) -> str:
    """Return setosa, versicolor or virginica for an object with the four `MEASUREMENTS`.

    Raises:
        ValueError: if it is no such object.
    """
    given = flower if isinstance(flower, dict) else {}
    measurements = [length for name in MEASUREMENTS if isinstance(length := given.get(name), int | float)]
    if len(measurements) != len(MEASUREMENTS) or not all(map(math.isfinite, measurements)):
        raise ValueError(f"give {', '.join(MEASUREMENTS)}, each a number of centimetres")
    (name,) = trained().predict([measurements])
    return str(name)
