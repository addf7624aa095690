//! What several paths add to one.

mod common;
mod gone;
mod service;
