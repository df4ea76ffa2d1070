//! Images: pull, load, tag, select, detect what an image is.
