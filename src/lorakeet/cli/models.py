"""`lorakeet models`: the models with a short name, what they take to train here, and which are downloaded."""

import json
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False) -> None:
    """List the models with a short name: size, licence, memory to train them here, and whether they are downloaded.

    Fetches nothing. Example: lorakeet models
    """
    from lorakeet import api

    listing = api.models()
    print(json.dumps(listing.to_dict()) if as_json else listing)
