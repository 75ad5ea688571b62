"""`twistd sojourn`: what `twistd web` serves, with sessions that are kept."""

# No __init__.py may be in this folder: it is one of many that make up twisted.plugins.
from twisted.application.service import ServiceMaker

serviceMaker = ServiceMaker(
    "Sojourn",
    "sojourn.web.twisted.tap",
    "What `twistd web` serves, with sessions that are kept in a store.",
    "sojourn",
)
