"""The wire format (`memserve.proto`) and its conversion to core types."""
