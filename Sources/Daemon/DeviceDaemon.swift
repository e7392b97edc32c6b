package import JSON

/// The daemon of a device, as commands ask it.
package struct DeviceDaemon {
  let device: DeviceName
  let directory: StateDirectory

  /// The daemon of this device.
  package init(_ device: DeviceName) {
    self.device = device
    directory = StateDirectory(id: device.id)
  }

  /// Whether the daemon speaks the control protocol of this program, as far as its state file says.
  package var speaksThisProtocol: Bool {
    directory.read().map { $0.controlVersion == ControlRequest.version } ?? true
  }

  /// Has the daemon carry out a request.
  ///
  /// - Parameters:
  ///   - request: What is asked for.
  ///   - isCancelled: Whether the job that is asked for is not wanted any more.
  ///   - onEvent: Gets each message before the last.
  /// - Returns: The result; nil if nobody answers: the daemon goes, or has gone.
  /// - Throws: What the daemon says against it, or why it could not be asked.
  package func ask(
    _ request: ControlRequest, isCancelled: () -> Bool = { false },
    onEvent: (ControlMessage) -> Void = { _ in }
  ) throws(CommandError) -> JSONValue? {
    let process = directory.read()?.process ?? 0
    guard speaksThisProtocol else { throw .otherVersion(device, process: process) }
    let answer = ControlClient.ask(
      request, socket: directory.controlSocket, isCancelled: isCancelled, onEvent: onEvent)
    switch answer {
    case .result(let value): return value
    case .error(let error): throw failure(error, process)
    case .silent(let found): throw .daemonSilent(device, found > 0 ? found : process)
    case .nothing: return nil
    }
  }

  private func failure(_ error: ControlError, _ process: Int32) -> CommandError {
    switch error.kind {
    case .gone: .goneMeanwhile(device)
    case .version, .malformed, .unknownRequest: .otherVersion(device, process: process)
    case .arguments, .busy, .refused, .failed, .cancelled, .job, .other:
      .daemonRefused(device, error.text)
    }
  }
}
