"""Which Arrow types count as text and as lists: files come with several of each."""

from __future__ import annotations

import pyarrow as pa

from tokloss_ray.ragged import one_array


def is_text(type_: pa.DataType) -> bool:
    """Whether an Arrow type holds strings, plain or dictionary-encoded."""
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def without_views(array: pa.Array) -> pa.Array:
    """An array, or lists, whose dictionary of string views (Polars' categories) is one of strings: Arrow cannot cast
    the former."""
    type_ = array.type
    if pa.types.is_dictionary(type_) and pa.types.is_string_view(type_.value_type):
        return pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(pa.large_string()))
    if pa.types.is_large_list(type_) or pa.types.is_list(type_):
        values = without_views(array.values)
        if values is not array.values and values.type != type_.value_type:
            make = pa.LargeListArray if pa.types.is_large_list(type_) else pa.ListArray
            return make.from_arrays(array.offsets, values, mask=array.is_null() if array.null_count else None)
    return array


def as_list(column: pa.ChunkedArray, item: pa.DataType) -> pa.ListArray:
    """A list column of any width as list<item>."""
    array = without_views(one_array(column))
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.list_(item))
    # Unsafe: an unsigned integer beyond int64 becomes a negative one, which no tag and no token id is.
    return array.cast(pa.list_(item), safe=False)
