//! OCI distribution client: resolve, pull with resume, authenticate, mirror.
