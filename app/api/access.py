"""What handlers are given: the opened rooms of this application."""

from typing import Annotated

from fastapi import Depends, Request

from app.house import House


def house(request: Request) -> House:
    """The rooms that the lifespan opened."""
    opened: House = request.app.state.house
    return opened


HouseDep = Annotated[House, Depends(house)]
