//! A typed client of the Docker REST API.
