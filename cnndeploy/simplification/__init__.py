"""x"""

from cnndeploy.simplification.simplify import fold_preprocessing as fold_preprocessing, simplify as simplify
