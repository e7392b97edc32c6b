import Glibc

/// Waits until a descriptor is readable or its other side has gone.
///
/// - Returns: False after `milliseconds`.
package func waitReadable(_ descriptor: Int32, milliseconds: Int32) -> Bool {
  var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return unsafe poll(&entry, 1, milliseconds) > 0
}
