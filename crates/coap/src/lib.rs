//! CoAP server protocol, sans-IO.
