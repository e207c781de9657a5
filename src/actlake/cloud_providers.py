"""The providers of rented machines: Vast.ai, RunPod, Lambda, behind one protocol."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Callable
from typing import Any

from .cloud_http import Api
from .rental import START, Machine, MachineState, Offer, Order, Provider, matching
from .schemas import GpuWish, InvalidInputError, near_names
from .schemas.errors import CloudError

__all__ = ["PROVIDERS", "Lambda", "RunPod", "Vast", "connect"]


class Vast:
    """Vast.ai.

    Documentation: docs.vast.ai, "search offers" (POST /api/v0/bundles/), "create instance"
    (PUT /api/v0/asks/{id}/), "Creating Instances with the API", "show instances" (the table of
    ``actual_status``), "destroy instance" (DELETE /api/v0/instances/{id}/). The list is read from
    /api/v1/instances/, page by page, as Vast.ai's own client does.
    """

    name = "vast"
    console = "https://cloud.vast.ai/instances/"
    ends_itself = True  # CONTAINER_ID and CONTAINER_API_KEY are in the machine's environment

    def __init__(self, api: Api) -> None:
        self.api = api

    def search(self, wish: GpuWish) -> list[Offer]:
        """Return what can be rented now, cheapest first."""
        query: dict[str, Any] = {
            "type": "on-demand",
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "rented": {"eq": False},
            "num_gpus": {"eq": wish.n_gpus},
            "gpu_ram": {"gte": wish.gpu_memory_gb * 1000},  # MB, and cards have a little less
            "disk_space": {"gte": wish.disk_gb},
            "allocated_storage": wish.disk_gb,
            "order": [["dph_total", "asc"]],
            "limit": 1000,
        }
        if wish.max_price_per_hour is not None:
            query["dph_total"] = {"lte": wish.max_price_per_hour}
        answer = self.api.call("POST", "/api/v0/bundles/", body=query)
        offers = [
            Offer(
                id=str(row["id"]),
                gpu=str(row["gpu_name"]),
                n_gpus=int(row["num_gpus"]),
                gpu_memory_gb=round(row["gpu_ram"] / 1000, 1),
                price_per_hour=float(row["dph_total"]),
                where=str(row.get("geolocation") or ""),
            )
            for row in answer["offers"]
        ]
        return matching(offers, wish)

    def create(self, offer: Offer, order: Order) -> str:
        """Rent a machine, and return its id."""
        answer = self.api.call(
            "PUT",
            f"/api/v0/asks/{offer.id}/",
            body={
                "client_id": "me",
                "image": order.image,
                "disk": order.disk_gb,
                "env": dict(order.environment),
                "label": order.label,
                "onstart": START,
                "runtype": "ssh_direct",
                "cancel_unavail": True,  # an error now rather than a machine that waits
            },
        )
        if not answer or not answer.get("new_contract"):
            msg = f"vast rented nothing for offer {offer.id}: {answer}"
            raise CloudError(msg)
        return str(answer["new_contract"])

    def machines(self) -> list[Machine]:
        """Return all machines of the account."""
        states: dict[str | None, MachineState] = {
            "running": "running", "exited": "ended", "stopped": "ended", "offline": "ended",
        }  # fmt: skip
        found: list[Machine] = []
        query: dict[str, Any] = {"limit": 25}
        while True:
            answer = self.api.call("GET", "/api/v1/instances/", query=query)
            found += [
                Machine(
                    id=str(row["id"]),
                    label=str(row.get("label") or ""),
                    state=states.get(row.get("actual_status"), "starting"),
                    price_per_hour=row.get("dph_total"),
                )
                for row in answer["instances"]
            ]
            if not answer.get("next_token"):
                return found
            query["after_token"] = answer["next_token"]

    def destroy(self, machine_id: str) -> None:
        """Give a machine back for good."""
        self.api.call("DELETE", f"/api/v0/instances/{machine_id}/", body={}, missing_ok=True)


class RunPod:
    """RunPod.

    Documentation: docs.runpod.io/api-reference, "Create a new Pod" (POST /pods), "List Pods",
    "Delete a Pod"; prices come from the query ``gpuTypes`` of graphql-spec.runpod.io, since
    REST v1 has none and v2 is in beta.
    """

    name = "runpod"
    console = "https://console.runpod.io/pods"
    ends_itself = True  # RUNPOD_POD_ID and a RUNPOD_API_KEY of the pod are in its environment

    def __init__(self, api: Api, prices: Api) -> None:
        self.api, self.prices = api, prices

    def search(self, wish: GpuWish) -> list[Offer]:
        """Return what can be rented now, cheapest first."""
        query = (
            "query { gpuTypes { id displayName memoryInGb secureCloud communityCloud "
            f"securePrice communityPrice lowestPrice(input: {{gpuCount: {wish.n_gpus}}}) "
            "{ stockStatus } } }"
        )
        answer = self.prices.call("POST", "/graphql", body={"query": query})
        if not answer or answer.get("errors") or not answer.get("data"):
            msg = f"runpod gave no prices: {(answer or {}).get('errors')}"
            raise CloudError(msg)
        offers = []
        for row in answer["data"]["gpuTypes"]:
            if not (row.get("lowestPrice") or {}).get("stockStatus"):
                continue  # none of this type is free
            for cloud in ("SECURE", "COMMUNITY"):
                price = row.get(f"{cloud.lower()}Price")
                if row.get(f"{cloud.lower()}Cloud") and price:
                    offers.append(
                        Offer(
                            id=f"{cloud}:{row['id']}",
                            gpu=f"{row['displayName']} {row['id']}",
                            n_gpus=wish.n_gpus,
                            gpu_memory_gb=row.get("memoryInGb"),
                            price_per_hour=round(float(price) * wish.n_gpus, 4),
                            where=cloud.lower(),
                        )
                    )
        return matching(offers, wish)

    def create(self, offer: Offer, order: Order) -> str:
        """Rent a machine, and return its id."""
        cloud, _, gpu = offer.id.partition(":")
        answer = self.api.call(
            "POST",
            "/pods",
            body={
                "name": order.label,
                "imageName": order.image,
                "cloudType": cloud,
                "gpuTypeIds": [gpu],
                "gpuCount": offer.n_gpus,
                "containerDiskInGb": order.disk_gb,
                "volumeInGb": 0,
                "env": dict(order.environment),
                "dockerEntrypoint": [],
                "dockerStartCmd": ["bash", "-c", START],
            },
        )
        if not answer or not answer.get("id"):
            msg = f"runpod rented nothing for {offer.id}: {answer}"
            raise CloudError(msg)
        return str(answer["id"])

    def machines(self) -> list[Machine]:
        """Return all machines of the account."""
        states: dict[str | None, MachineState] = {
            "RUNNING": "running", "EXITED": "ended", "TERMINATED": "ended",
        }  # fmt: skip
        return [
            Machine(
                id=str(row["id"]),
                label=str(row.get("name") or ""),
                state=states.get(row.get("desiredStatus"), "starting"),
                price_per_hour=float(row["costPerHr"]) if row.get("costPerHr") else None,
            )
            for row in self.api.call("GET", "/pods") or []
        ]

    def destroy(self, machine_id: str) -> None:
        """Give a machine back for good."""
        self.api.call("DELETE", f"/pods/{machine_id}", missing_ok=True)


class Lambda:
    """Lambda.

    Documentation: docs-api.lambda.ai, "Lambda Cloud API": GET /instance-types, POST
    /instance-operations/launch and /terminate, GET /instances. A machine starts from Lambda's own
    image, not from a container, and has no key of its own: whoever started it must end it.
    """

    name = "lambda"
    console = "https://cloud.lambda.ai/instances"
    ends_itself = False

    def __init__(self, api: Api, ssh_key: str) -> None:
        self.api, self.ssh_key = api, ssh_key

    def search(self, wish: GpuWish) -> list[Offer]:
        """Return what can be rented now, cheapest first."""
        answer = self.api.call("GET", "/instance-types")
        offers = []
        for name, row in answer["data"].items():
            kind = row["instance_type"]
            gpu = f"{kind.get('gpu_description') or ''} {kind.get('description') or ''}".strip()
            offers += [
                Offer(
                    id=f"{region['name']}:{name}",
                    gpu=gpu,
                    n_gpus=int(kind["specs"]["gpus"]),
                    gpu_memory_gb=_stated_memory(gpu),
                    price_per_hour=kind["price_cents_per_hour"] / 100,
                    where=region["name"],
                )
                for region in row["regions_with_capacity_available"]
            ]
        return matching(offers, wish)

    def create(self, offer: Offer, order: Order) -> str:
        """Rent a machine, and return its id."""
        if not self.ssh_key:
            msg = "lambda launches nothing without the name of an SSH key of the account: --ssh-key"
            raise InvalidInputError(msg)
        region, _, name = offer.id.partition(":")
        exports = [f"export {k}={shlex.quote(v)}" for k, v in order.environment.items()]
        answer = self.api.call(
            "POST",
            "/instance-operations/launch",
            body={
                "region_name": region,
                "instance_type_name": name,
                "ssh_key_names": [self.ssh_key],
                "name": order.label,
                "user_data": "\n".join(["#!/bin/bash", *exports, START, ""]),
            },
        )
        ids = ((answer or {}).get("data") or {}).get("instance_ids") or []
        if len(ids) != 1:
            msg = f"lambda launched {len(ids)} machines instead of one for {offer.id}"
            raise CloudError(msg)
        return str(ids[0])

    def machines(self) -> list[Machine]:
        """Return all machines of the account."""
        states: dict[str | None, MachineState] = {
            "active": "running", "unhealthy": "ended", "preempted": "ended",
        }  # fmt: skip
        return [
            Machine(
                id=str(row["id"]),
                label=str(row.get("name") or ""),
                state=states.get(row.get("status"), "starting"),
                price_per_hour=(row.get("instance_type") or {}).get("price_cents_per_hour", 0) / 100
                or None,
            )
            for row in self.api.call("GET", "/instances")["data"]
            if row.get("status") not in {"terminating", "terminated"}
        ]

    def destroy(self, machine_id: str) -> None:
        """Give a machine back for good."""
        # Repeated by the caller, who also looks whether it is gone: POST is not repeated by Api.
        body = {"instance_ids": [machine_id]}
        self.api.call("POST", "/instance-operations/terminate", body=body, missing_ok=True)


def _stated_memory(description: str) -> float | None:
    """Return the GB that ``1x A100 (80 GB SXM4)`` states, or None."""
    words = description.replace("(", " ").replace(")", " ").split()
    for number, unit in itertools.pairwise(words):
        if unit == "GB" and number.isdigit():
            return float(number)
    return None


def _vast(ssh_key: str) -> Provider:
    del ssh_key  # keys of the account are put on every machine
    base = os.environ.get("VAST_URL") or "https://console.vast.ai"
    return Vast(Api(base, _key("VAST_API_KEY"), "vast"))


def _runpod(ssh_key: str) -> Provider:
    del ssh_key
    key = _key("RUNPOD_API_KEY")
    rest = os.environ.get("RUNPOD_REST_URL") or "https://rest.runpod.io/v1"
    prices = os.environ.get("RUNPOD_API_URL") or "https://api.runpod.io"
    return RunPod(Api(rest, key, "runpod"), Api(prices, key, "runpod"))


def _lambda(ssh_key: str) -> Provider:
    base = os.environ.get("LAMBDA_API_URL") or "https://cloud.lambda.ai/api/v1"
    return Lambda(Api(base, _key("LAMBDA_API_KEY"), "lambda"), ssh_key)


PROVIDERS: dict[str, Callable[[str], Provider]] = {
    "vast": _vast, "runpod": _runpod, "lambda": _lambda,
}  # fmt: skip


def connect(name: str, *, ssh_key: str = "") -> Provider:
    """Return the provider ``name``, with the key that the environment holds.

    Raises
    ------
    InvalidInputError
        If there is no such provider, or the environment has no key for it.
    """
    if name not in PROVIDERS:
        near = near_names(name, list(PROVIDERS))
        msg = f"no provider {name!r}{near}; there are {', '.join(PROVIDERS)}"
        raise InvalidInputError(msg)
    return PROVIDERS[name](ssh_key)


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        msg = f"the environment has no {variable}; create a key with the provider and export it"
        raise InvalidInputError(msg)
    return key
