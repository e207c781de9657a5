"""Croissant 1.0: the JSON-LD by which data catalogues find a store and read its texts.

The specification: https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FileEntry", "croissant_document"]

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


@dataclass(frozen=True)
class FileEntry:
    """One file of the store that the document vouches for by its hash."""

    key: str
    description: str
    encoding: str
    n_bytes: int
    sha256: str


def croissant_document(
    *,
    name: str,
    description: str,
    license_: str,
    url: str,
    date: str,
    files: Sequence[FileEntry],
    tables: Sequence[tuple[str, str, Sequence[str]]],
) -> dict[str, Any]:
    """Return the JSON-LD document of a store.

    Parameters
    ----------
    files
        What can be downloaded and checked by itself.
    tables
        (corpus id, key of its texts, their columns) of every corpus: each becomes a record set.
    """
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "license": license_,
        "url": url,
        "version": "1.0.0",
        "datePublished": date,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": file.key,
                "name": file.key,
                "description": file.description,
                "contentUrl": file.key,
                "contentSize": f"{file.n_bytes} B",
                "encodingFormat": file.encoding,
                "sha256": file.sha256,
            }
            for file in files
        ],
        "recordSet": [_texts_records(*table) for table in tables],
    }


def _texts_records(corpus: str, key: str, columns: Sequence[str]) -> dict[str, Any]:
    records = f"texts-{corpus}"
    return {
        "@type": "cr:RecordSet",
        "@id": records,
        "name": records,
        "description": f"The texts of corpus {corpus}, one per row of its runs.",
        "key": {"@id": f"{records}/id"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{records}/{column}",
                "name": column,
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": key}, "extract": {"column": column}},
            }
            for column in columns
        ],
    }
