//! `GET /distribution/{name}/json`: not part of this version.

use axum::extract::Path;

use crate::error::ApiError;

/// What a reference points at in its registry.
pub(crate) async fn inspect(Path(path): Path<String>) -> ApiError {
    match path.ends_with("/json") {
        true => ApiError::not_supported("inspecting an image in its registry"),
        false => ApiError::not_found("page not found"),
    }
}
