"""Schemes: closed forms from which weights are drawn, each with when to use it and its source."""

from fanin.catalogue.lookup import ALIASES, SCHEMES, document, find
from fanin.catalogue.scheme import Argument, Scheme

__all__ = ["ALIASES", "SCHEMES", "Argument", "Scheme", "document", "find"]
