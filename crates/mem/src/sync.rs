//! The locks where threads meet over buffers: parking_lot's, and under `--cfg kvstrata_shuttle` those of a model checker,
//! which decides at each of them who goes on.

#[cfg(not(kvstrata_shuttle))]
pub use parking_lot::{Mutex, RwLock};
#[cfg(not(kvstrata_shuttle))]
pub use std::sync::atomic;

#[cfg(kvstrata_shuttle)]
pub use model::{Mutex, RwLock};
#[cfg(kvstrata_shuttle)]
pub use shuttle::sync::atomic;

/// The model checker's locks with parking_lot's interface: a thread that panics fails the test anyway.
#[cfg(kvstrata_shuttle)]
mod model {
    use std::sync::PoisonError;

    use shuttle::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};

    /// See `parking_lot::Mutex`.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A free lock.
        pub fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// The value, of which this is the only owner.
        pub fn get_mut(&mut self) -> &mut T {
            self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// See `parking_lot::RwLock`.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(shuttle::sync::RwLock<T>);

    impl<T> RwLock<T> {
        /// Waits until nobody writes.
        pub fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        /// Waits until nobody else reads or writes.
        pub fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
