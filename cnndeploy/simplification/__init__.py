"""x"""

from cnndeploy.simplification.simplify import fold_preprocessing as fold_preprocessing
from cnndeploy.simplification.simplify import simplify as simplify
