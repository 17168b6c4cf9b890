"""Where messages stand in protobuf schemas."""

from __future__ import annotations

from base64 import b64encode

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from penstock.router.proto_schema import Places, message_places

TEXT = """
syntax = "proto3";  // message Comment {
package shop.v1;
import "google/protobuf/timestamp.proto";
/* message Other { } */
option (owner) = { name: "message Fake {" };

enum Kind { KIND_UNKNOWN = 0; }

message Order {
  string id = 1;
  map<string, int64> counts = 2 [deprecated = true];
  oneof payment {
    string card = 3;
    bytes cash = 4;
  }
  message Line {
    string message = 1;
    message Tax { double rate = 1; }
  }
  repeated Line lines = 5;
}
service Shop { rpc Place (Order) returns (stream Order) { option idempotent = true; } }
message Refund { string id = 1; }
"""


def test_messages_are_found_in_a_text() -> None:
    assert message_places(TEXT) == {
        "shop.v1.Order": Places((0,), (0,)),
        "shop.v1.Order.Line": Places((0, 0), (0, 1)),
        "shop.v1.Order.Line.Tax": Places((0, 0, 0), (0, 1, 0)),
        "shop.v1.Refund": Places((1,), (1,)),
    }


def test_groups_are_messages_also_in_a_oneof() -> None:
    text = 'syntax = "proto2"; message A { oneof o { group G = 1 { optional int32 x = 2; } } message B {} }'

    assert message_places(text) == {
        "A": Places((0,), (0,)),
        "A.G": Places((0, 0), (0, 0)),
        "A.B": Places((0, 1), (0, 1)),
    }


def test_messages_are_found_in_a_descriptor() -> None:
    file = FileDescriptorProto(name="shop.proto", package="shop.v1")
    file.message_type.add(name="Refund")
    order = file.message_type.add(name="Order")
    order.nested_type.add(name="CountsEntry").options.map_entry = True
    order.nested_type.add(name="Line")
    text = b64encode(file.SerializeToString()).decode()

    assert message_places(text) == {
        "shop.v1.Refund": Places((0,), (0,)),
        "shop.v1.Order": Places((1,), (1,)),
        "shop.v1.Order.Line": Places((1, 0), (1, 1)),
    }


def test_what_is_no_schema_has_no_messages() -> None:
    assert message_places("") == {}
    assert message_places("}}} nonsense {{{") == {}
    assert message_places(b64encode(b"no descriptor").decode()) == {}
