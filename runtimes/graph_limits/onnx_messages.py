"""The messages of an ONNX file for protobuf, which ONNX Runtime brings along; onnx itself is no part of a device.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). Texts are read as bytes,
since files may hold anything. A field that is not listed would be read by others and not by this runtime, so that
`parse_model` refuses it.
"""

from __future__ import annotations

import functools
from typing import Any

# Each field: name, number, "*" where it repeats, type: i an integer, f a float, d a double, b bytes, or a message.
MESSAGES = {
    "Model": "ir_version 1 i, opset_import 8* Opset, producer_name 2 b, producer_version 3 b, domain 4 b, "
             "model_version 5 i, doc_string 6 b, graph 7 Graph, metadata_props 14* Entry, training_info 20* Other, "
             "functions 25* Function, configuration 26* Other",
    "Opset": "domain 1 b, version 2 i",
    "Entry": "key 1 b, value 2 b",
    "Other": "",
    "Graph": "node 1* Node, name 2 b, initializer 5* Tensor, doc_string 10 b, input 11* Value, output 12* Value, "
             "value_info 13* Value, quantization_annotation 14* Other, sparse_initializer 15* Other, "
             "metadata_props 16* Entry",
    "Node": "input 1* b, output 2* b, name 3 b, op_type 4 b, domain 7 b, overload 8 b, attribute 5* Attribute, "
            "doc_string 6 b, metadata_props 9* Entry, device_configurations 10* Other",
    "Attribute": "name 1 b, f 2 f, i 3 i, s 4 b, t 5 Tensor, g 6 Graph, floats 7* f, ints 8* i, strings 9* b, "
                 "tensors 10* Other, graphs 11* Other, doc_string 13 b, tp 14 Other, type_protos 15* Other, type 20 i, "
                 "ref_attr_name 21 b, sparse_tensor 22 Other, sparse_tensors 23* Other",
    "Tensor": "dims 1* i, data_type 2 i, segment 3 Other, float_data 4* f, int32_data 5* i, string_data 6* b, "
              "int64_data 7* i, name 8 b, raw_data 9 b, double_data 10* d, uint64_data 11* i, doc_string 12 b, "
              "external_data 13* Entry, data_location 14 i, metadata_props 16* Entry",
    "Value": "name 1 b, type 2 Type, doc_string 3 b, metadata_props 4* Entry",
    "Type": "tensor_type 1 TensorType, denotation 6 b",
    "TensorType": "elem_type 1 i, shape 2 Shape",
    "Shape": "dim 1* Dimension",
    "Dimension": "dim_value 1 i, dim_param 2 b, denotation 3 b",
    "Function": "name 1 b, input 4* b, output 5* b, attribute 6* b, node 7* Node, doc_string 8 b, "
                "opset_import 9* Opset, domain 10 b, attribute_proto 11* Attribute, value_info 12* Value, "
                "overload 13 b, metadata_props 14* Entry",
}  # fmt: skip
KINDS = {"i": "TYPE_INT64", "f": "TYPE_FLOAT", "d": "TYPE_DOUBLE", "b": "TYPE_BYTES"}


def parse_model(data: bytes) -> Any:
    """The message in a file; ValueError where it is not one."""
    from google.protobuf.message import DecodeError

    model = _model_class()()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError) as error:
        raise ValueError("it is no ONNX model, or is cut") from error
    return model


@functools.cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="lensmith_onnx.proto", package="lensmith_onnx", syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            title, number, kind = field.split()
            made = message.field.add(name=title, number=int(number.rstrip("*")))
            made.label = made.LABEL_REPEATED if number.endswith("*") else made.LABEL_OPTIONAL
            made.type = getattr(made, KINDS.get(kind, "TYPE_MESSAGE"))
            if kind not in KINDS:
                made.type_name = f".lensmith_onnx.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("lensmith_onnx.Model"))
