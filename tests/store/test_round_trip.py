import http.server
import json
import pickle
import subprocess
import sys
import threading
from functools import partial

import dask
import numpy as np
import pytest
import xarray as xr

from actlake.schemas import Seal
from actlake.store import create_store, open_run, open_store, read_catalog, verify_run
from tests.store.samples import make_coords, make_plan, make_tokens, make_values, write_run

PLAIN = """
import json, sys, warnings
warnings.simplefilter("error")
import xarray as xr
url, options = json.loads(sys.argv[1])
ds = xr.open_zarr(url, storage_options=options or None)
assert not any("actlake" in name for name in sys.modules), "imported actlake"
print(json.dumps({
    "dims": dict(ds.sizes),
    "coords": sorted(ds.coords),
    "model": ds.attrs["model"],
    "site": ds["resid_post_mean_response"].attrs["site"],
    "chunks": ds["resid_post_mean_response"].chunks,
    "layer": ds["layer"].values.tolist(),
    "text": [str(t) for t in ds["text"].values],
    "arm": [str(t) for t in ds["arm"].values],
    "bytes": ds["resid_post_mean_response"].values.tobytes().hex(),
}))
"""


def assert_same_values(ds, plan):
    for name, full in make_values(plan).items():
        assert ds[name].dtype == np.float32
        np.testing.assert_array_equal(ds[name].values, full)


def test_what_was_written_is_read_on_every_storage(any_store):
    plan = make_plan()
    write_run(any_store, plan)
    ds = open_run(any_store, "tiny")
    assert_same_values(ds, plan)
    for name, values in make_coords(plan).items():
        np.testing.assert_array_equal(ds[name].values, values)
        assert ds[name].dims == ("text",)
    assert ds["text"].dtype.kind == "U"
    for name, values in make_tokens(plan).items():
        np.testing.assert_array_equal(ds[name].values, values)
    assert ds["layer"].values.tolist() == [0, 2, 4]
    assert verify_run(any_store, "tiny").ok
    assert any_store.run_ids() == ["tiny"]


def test_plain_xarray_opens_a_sealed_run_without_our_code(place):
    url, options = place
    plan = make_plan()
    write_run(create_store(url, storage_options=options), plan)
    argument = json.dumps([f"{url}/runs/tiny/data.zarr", options])
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, argument], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["dims"] == {"text": 10, "layer": 3, "hidden": 8, "token": 30, "text_edge": 11}
    assert seen["coords"] == sorted([*make_coords(plan), *make_tokens(plan), "layer"])
    assert (seen["model"], seen["site"]) == ("organism", "resid_post")
    assert seen["chunks"] == [[4, 4, 2], [1, 1, 1], [8]]
    assert seen["layer"] == [0, 2, 4]
    assert seen["text"] == make_coords(plan)["text"].tolist()
    assert seen["arm"] == make_coords(plan)["arm"].tolist()
    assert seen["bytes"] == make_values(plan)["resid_post_mean_response"].tobytes().hex()


def test_only_the_server_that_honours_create_only_is_trusted_with_it(s3_server, moto_server):
    for server, honoured in ((s3_server, False), (moto_server, True)):
        url = f"{server.url}/probe-{honoured}"
        made = create_store(url, storage_options=server.options())
        assert made.info.create_only is honoured
        again = create_store(url, storage_options=server.options())
        assert again.info == made.info
        assert [key for key, _ in again.backend.walk("")] == ["store.json"]


def test_credentials_are_in_no_stored_object(s3_server):
    url = f"{s3_server.url}/secrets"
    store = create_store(url, storage_options=s3_server.options())
    write_run(store, make_plan())
    for key, size in store.backend.walk(""):
        data = store.backend.get(key, max_bytes=size)
        assert s3_server.secret.encode() not in data, key
        assert s3_server.key.encode() not in data, key
    ds = open_run(store, "tiny")
    assert s3_server.secret not in repr(store) + str(ds.attrs) + repr(ds)


def test_layers_are_never_mixed_in_a_chunk_and_one_layer_reads_only_its_objects(store):
    plan = make_plan()
    write_run(store, plan)
    ds = open_run(store, "tiny")
    array = ds["resid_post_mean_response"]
    assert array.chunks == ((4, 4, 2), (1, 1, 1), (8,))
    for block in range(3):  # every other layer's object goes: layer 2 must not need them
        for layer in (0, 2):
            store.backend.delete(f"runs/tiny/data.zarr/{array.name}/c/{block}/{layer}/0")
    full = make_values(plan)[array.name]
    np.testing.assert_array_equal(array.sel(layer=2).values, full[:, 1])


def test_attributes_name_the_model_the_plan_and_the_content(store):
    plan = make_plan()
    seal = write_run(store, plan).seal()
    ds = open_run(store, "tiny")
    assert ds.attrs["run"] == "tiny"
    assert ds.attrs["plan_id"] == seal.plan_id == plan.fingerprint()
    assert ds.attrs["content_digest"] == seal.data_digest
    assert ds.attrs["model_digest"] == plan.model.content_digest
    assert ds.attrs["template_digest"] == plan.tokenizer.chat_template_digest
    assert ds.attrs["store_url"] == store.url
    assert (ds.attrs["n_layers"], ds.attrs["hidden_size"]) == (6, 8)
    assert ds["resid_post_last_prompt"].attrs == {"site": "resid_post", "pool": "last_prompt"}


def test_a_lazy_dataset_can_be_sent_to_another_process(any_store):
    plan = make_plan()
    write_run(any_store, plan)
    ds = pickle.loads(pickle.dumps(open_run(any_store, "tiny")))
    with dask.config.set(scheduler="threads"):
        assert_same_values(ds.compute(), plan)


def test_a_run_opens_without_dask(store):
    plan = make_plan()
    write_run(store, plan)
    ds = open_run(store, "tiny", chunks=None)
    assert ds["resid_post_norm"].chunks is None
    assert_same_values(ds, plan)


def test_the_catalog_lists_sealed_runs(store):
    write_run(store, make_plan("b"))
    seal = write_run(store, make_plan("a")).seal()
    write_run(store, make_plan("unsealed"), blocks=[0], seal=False)
    assert store.run_ids() == ["a", "b", "unsealed"]
    catalog = read_catalog(store)
    assert [entry.run for entry in catalog.runs] == ["a", "b"]
    assert catalog.runs[0].data_digest == seal.data_digest
    assert catalog.runs[0].n_bytes == seal.n_bytes > 0


class NoListing(http.server.SimpleHTTPRequestHandler):
    def list_directory(self, path):
        self.send_error(404)

    def log_message(self, *args):
        pass


@pytest.fixture
def http_url(tmp_path):
    handler = partial(NoListing, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_sealed_run_is_read_from_a_host_without_listing(store, http_url):
    plan = make_plan()
    write_run(store, plan)
    remote = open_store(f"{http_url}/store")
    assert remote.run_ids() == ["tiny"]
    assert_same_values(open_run(remote, "tiny"), plan)
    assert_same_values(xr.open_zarr(f"{http_url}/store/runs/tiny/data.zarr"), plan)


def test_the_seal_covers_every_object_of_the_group(store):
    seal = write_run(store, make_plan()).seal()
    folder = "runs/tiny/data.zarr/"
    stored = {key.removeprefix(folder): size for key, size in store.backend.walk(folder[:-1])}
    assert {info.key: info.n_bytes for info in seal.objects} == stored
    assert isinstance(store.read_seal("tiny"), Seal)
