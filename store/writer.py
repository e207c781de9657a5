"""Writing a run: create or resume it, encode and commit its blocks, seal it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schemas import (
    AlreadyExistsError,
    BlockCommit,
    EnvironmentInfo,
    InvalidInputError,
    ObjectInfo,
    RunPlan,
    Seal,
)
from .block_writer import BlockWriter
from .clock import now
from .commits import object_info
from .deciding import create_or_read
from .input_checks import check_plan, static_arrays
from .layout import (
    METADATA_NAME,
    StaticArray,
    encode_static,
    group_metadata,
    plan_metadata,
    static_metadata,
    to_bytes,
)
from .run_claim import OBJECT_BYTES, claim_run, means_the_same, new_manifest
from .sealing import seal_run

if TYPE_CHECKING:
    from .store import Store

__all__ = ["RunWriter"]


class RunWriter:
    """The writer of one run. Threads may commit different blocks through one writer."""

    def __init__(
        self, store: Store, plan: RunPlan, *, plan_id: str, environment: EnvironmentInfo
    ) -> None:
        self.store = store
        self.plan = plan
        self.plan_id = plan_id
        self.environment = environment
        self.writer = uuid.uuid4().hex[:12]
        self._keys = store.keys(plan.run)
        self._static: dict[str, ObjectInfo] = {}  # filled by create, read by seal
        self._metadata: dict[str, dict[str, Any]] = {}
        self._coordinates: list[str] = []
        # Both overlap encoding with waiting, a wire waits longer than a disk.
        self._n_threads = max(4, 2 * (os.cpu_count() or 1)) if store.location.is_local else 16
        self._blocks = BlockWriter(
            store,
            plan,
            plan_id=plan_id,
            environment=environment,
            writer=self.writer,
            n_threads=self._n_threads,
        )

    def __repr__(self) -> str:
        return f"RunWriter({self.plan.run!r}, {self.store.url!r})"

    # -- creating

    @classmethod
    def create(
        cls,
        store: Store,
        plan: RunPlan,
        *,
        coords: Mapping[str, np.ndarray[Any, Any]],
        environment: EnvironmentInfo,
        token_data: Mapping[str, np.ndarray[Any, Any]],
    ) -> RunWriter:
        """Return a writer of a new run, or of the same run where it was left (see ``Store``).

        The order is what makes a kill harmless: the plan claims the run id, the metadata and
        coordinates follow (the same bytes whoever writes them), and the manifest comes last.
        """
        check_plan(plan)
        arrays = static_arrays(plan, coords=coords, token_data=token_data)
        plan, plan_id, is_new = claim_run(store, plan)
        writer = cls(store, plan, plan_id=plan_id, environment=environment)
        store.backend.clean(writer._keys.folder)
        writer._write_static(arrays, is_new=is_new)
        if store.backend.size(writer._keys.manifest) is None:
            manifest = new_manifest(
                plan, plan_id=plan_id, created_at=now(), environment=environment
            )
            create_or_read(store, writer._keys.manifest, manifest.to_json().encode())
        return writer

    def _write_static(self, arrays: list[StaticArray], *, is_new: bool) -> None:
        """Write metadata and coordinates that are not there; check those that are."""
        objects: dict[str, bytes] = {}
        dtypes: dict[str, str] = {}
        self._metadata = plan_metadata(self.plan)
        for name, document in self._metadata.items():
            objects[f"{name}/{METADATA_NAME}"] = to_bytes(document)
        for array in arrays:
            self._metadata[array.name] = static_metadata(array)
            objects.update(encode_static(array))
            dtypes[array.name] = self._metadata[array.name]["data_type"]
        self._coordinates = [a.name for a in arrays if a.name not in {"text", "layer"}]

        def write(item: tuple[str, bytes]) -> ObjectInfo:
            key, data = item
            full = self._keys.object(key)
            stored = None
            if not is_new:
                stored = self.store.backend.get(full, max_bytes=OBJECT_BYTES)
            if stored is None:
                self.store.backend.put(full, data)
            elif stored != data and not means_the_same(
                stored, data, dtype=dtypes.get(key.partition("/")[0], ""), key=key
            ):
                msg = (
                    f"run {self.plan.run!r} in {self.store.url} was created with other values "
                    f"in {key} under the same plan; give this run another id, or pass the "
                    "coordinates that it was created with"
                )
                raise AlreadyExistsError(msg)
            return object_info(key, data if stored is None else stored)

        with ThreadPoolExecutor(self._n_threads) as pool:
            self._static = {info.key: info for info in pool.map(write, objects.items())}
        root = self._keys.object(METADATA_NAME)
        if is_new or self.store.backend.size(root) is None:
            # Create-only: a request that arrives late must not replace what sealing wrote.
            create_or_read(self.store, root, to_bytes(self._group()))

    def _group(self, *, consolidated: bool = False) -> dict[str, Any]:
        return group_metadata(
            self.plan,
            plan_id=self.plan_id,
            coordinates=self._coordinates,
            consolidated=self._metadata if consolidated else None,
        )

    # -- blocks

    @property
    def is_sealed(self) -> bool:
        """Whether the run is sealed."""
        return self.store.backend.size(self._keys.seal) is not None

    def pending_blocks(self) -> list[int]:
        """Return the blocks that nobody has committed yet, by a fresh listing."""
        done = set(self.store.committed_blocks(self.plan.run))
        return [block for block in range(self.plan.n_blocks) if block not in done]

    def write_block(
        self,
        block: int,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        *,
        notes: Mapping[str, Any] | None = None,
    ) -> BlockCommit:
        """Encode, store and commit a block; return its commit record.

        Encoding one object overlaps with storing others, and an encoded object is held only
        until it is stored. A block that is committed already stays as it is, and its record is
        returned.

        Parameters
        ----------
        block
            Its index.
        arrays
            The block's rows of every array of the plan, dims (row, layer, hidden) or
            (row, layer), float32. The rows of a (token, token_layer, hidden) array are the
            tokens of the block's texts one after another, without padding; such arrays are left
            out where :meth:`add_tokens` brought the tokens.
        notes
            Plain JSON for the commit record.

        Raises
        ------
        InvalidInputError
            If an array is missing, unknown, has another shape or type than planned, or holds
            values that are not exactly of the 16-bit type that it is to be stored as.
        StorageError
            If the storage fails. On a full disk the objects of this block are removed again;
            committed blocks stay, and running again resumes.
        BlockClaimedError
            If another living worker is at work on this block.
        CorruptError
            If another writer committed this block meanwhile with other bytes, on a server
            without create-only PUTs: there only disjoint blocks are safe.
        """
        self._check_block(block, arrays)
        return self._blocks.write(block, arrays, notes=_plain_notes(notes or {}, block=block))

    def add_tokens(
        self, block: int, start: int, arrays: Mapping[str, np.ndarray[Any, Any]]
    ) -> None:
        """Add tokens of a block to its token arrays, so that it need not be in memory whole.

        A chunk is encoded and stored as soon as its last token has come, and this call waits
        where storing cannot keep up: memory holds the chunks that are begun and two that are
        full. Add tokens nearly in row order to begin few at a time. The block is claimed with
        its first tokens; when all were added, ``write_block`` with the other arrays commits it,
        and ``close`` gives it up. Of a block that somebody else has committed nothing is kept.

        Parameters
        ----------
        block
            Its index.
        start
            Where in the block's tokens these begin: 0 is the first token of its first text.
        arrays
            Consecutive tokens of every token array of the plan, dims (token, token_layer,
            hidden), float32. They are copied.

        Raises
        ------
        InvalidInputError
            If arrays, shapes or types are not the plan's, a token is none of the block or was
            added before, or values are not exactly of the 16-bit type that they are stored as.
            The block is given up.
        BlockClaimedError, StorageError
            As :meth:`write_block`; the block is given up.
        """
        axis = self.plan.token_axis
        if axis is None or not 0 <= block < self.plan.n_blocks:
            n_blocks = self.plan.n_blocks
            msg = f"run {self.plan.run!r} has {n_blocks} blocks"
            msg += f", got {block}" if axis else " without token arrays"
            raise InvalidInputError(msg)
        self._blocks.add_tokens(block, start, arrays, axis=axis)

    def claim_block(self, block: int) -> bool:
        """Claim a block before work on it is begun; return False where it is committed already.

        ``write_block`` claims what was not claimed before, commits and frees it; what is
        claimed and then not written is freed by ``close``.

        Raises
        ------
        BlockClaimedError
            If another living worker is at work on it.
        """
        return self._blocks.claim(block) is None

    def close(self) -> None:
        """Free the blocks that were claimed and not written; claims are no longer renewed."""
        self._blocks.give_up_all()
        self._blocks.claims.release_all()

    def _check_block(self, block: int, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        run = f"run {self.plan.run!r}"
        if not 0 <= block < self.plan.n_blocks:
            msg = f"{run} has blocks 0 to {self.plan.n_blocks - 1}, got {block}"
            raise InvalidInputError(msg)
        has_tokens = self._blocks.has_tokens(block)
        expected = {s.name: s for s in self.plan.arrays if not (s.is_tokens and has_tokens)}
        if set(arrays) != set(expected):
            msg = f"{run}, block {block}: expected arrays {sorted(expected)}, got {sorted(arrays)}"
            raise InvalidInputError(msg)
        axis = self.plan.token_axis
        for name, values in arrays.items():
            spec, rows = expected[name], self.plan.block_rows(block)
            if spec.is_tokens and axis is not None:
                rows = axis.tokens(block)
            shape = (rows.stop - rows.start, *spec.shape[1:])
            if values.shape != shape or values.dtype != np.float32:
                msg = (
                    f"{run}, block {block}: array {name!r} is {values.dtype} {values.shape}, "
                    f"expected float32 {shape}"
                )
                raise InvalidInputError(msg)

    # -- sealing

    def seal(self) -> Seal:
        """Seal the run: consolidated metadata, the manifest of all objects, the catalog.

        Sealing again returns the seal that is there.

        Raises
        ------
        IncompleteError
            If blocks are not committed yet.
        CorruptError
            If a committed object is missing or has another size.
        """
        return seal_run(
            self.store,
            self.plan,
            plan_id=self.plan_id,
            static=list(self._static.values()),
            group=to_bytes(self._group(consolidated=True)),
        )


def _plain_notes(notes: Mapping[str, Any], *, block: int) -> dict[str, Any]:
    """Return the notes as JSON will hold them; raise InvalidInputError where it cannot."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(notes), allow_nan=False))
    except (TypeError, ValueError) as err:
        msg = f"the notes of block {block} are not plain JSON: {err}"
        raise InvalidInputError(msg) from err
    return plain
