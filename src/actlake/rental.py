"""Offers, orders and machines: what every provider of rented machines has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .schemas import GpuWish

__all__ = ["START", "Machine", "MachineState", "Offer", "Order", "Provider", "matching"]

MachineState = Literal["starting", "running", "ended"]

# What a machine runs first: the script travels in the environment, since start commands are short.
START = (
    'printf %s "$ACTLAKE_SCRIPT" | base64 -d > /tmp/actlake-machine.sh'
    " && bash /tmp/actlake-machine.sh < /dev/null"
)


@dataclass(frozen=True)
class Offer:
    """A machine that can be rented, by the name that its provider gives it."""

    id: str
    gpu: str
    n_gpus: int
    gpu_memory_gb: float | None
    price_per_hour: float  # US dollars, the whole machine
    where: str = ""


@dataclass(frozen=True)
class Order:
    """What is to be rented and run; ``environment`` may hold credentials and is in no repr."""

    label: str
    image: str
    disk_gb: int
    environment: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Machine:
    """A rented machine."""

    id: str
    label: str
    state: MachineState
    price_per_hour: float | None = None


class Provider(Protocol):
    """What every provider can do; each raises CloudError where the provider refuses."""

    name: str
    console: str
    ends_itself: bool  # whether a machine has a key with which it can destroy itself

    def search(self, wish: GpuWish) -> list[Offer]:
        """Return what can be rented now, cheapest first."""
        ...

    def create(self, offer: Offer, order: Order) -> str:
        """Rent a machine, and return its id."""
        ...

    def machines(self) -> list[Machine]:
        """Return all machines of the account."""
        ...

    def destroy(self, machine_id: str) -> None:
        """Give a machine back for good; one that is gone already is no error."""
        ...


def matching(offers: Iterable[Offer], wish: GpuWish) -> list[Offer]:
    """Return the offers that grant ``wish``, cheapest first: no API's filter is relied on."""
    words = wish.gpu.lower().replace("_", " ").split()

    def grants(offer: Offer) -> bool:
        memory, ceiling = offer.gpu_memory_gb, wish.max_price_per_hour
        return (
            all(word in offer.gpu.lower() for word in words)
            and offer.n_gpus == wish.n_gpus
            and (memory is None or memory >= wish.gpu_memory_gb)
            and (ceiling is None or offer.price_per_hour <= ceiling)
            and offer.price_per_hour > 0
        )

    return sorted(filter(grants, offers), key=lambda offer: offer.price_per_hour)
