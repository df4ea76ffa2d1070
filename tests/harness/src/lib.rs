//! What the tests share: private engines, image makers, lying registries, host inventories.
