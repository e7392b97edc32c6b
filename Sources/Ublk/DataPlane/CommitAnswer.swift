import BlockCore

/// What the driver's answer to a batch of results means.
///
/// It takes the elements in their order and stops at the first that it does not like. Its answer is the
/// bytes that it took; if it took none, why. So a reason always belongs to the first element, or to the
/// command as a whole.
///
/// Source: Linux include/uapi/linux/ublk_cmd.h, `UBLK_U_IO_COMMIT_IO_CMDS`; drivers/block/ublk_drv.c,
/// `ublk_batch_commit_io`.
enum CommitAnswer: Equatable {
  /// All results were taken.
  case whole
  /// The driver stopped at this element and did not say why: it says so when the element comes first.
  case partial(taken: Int)
  /// The driver took nothing, and has no request of ours in the first element's tag.
  case notOurs
  /// The driver took nothing, for a reason that may pass.
  case later(Errno)
  /// The driver took nothing and never will: the requests stay in it.
  case refused(Errno)

  /// - Parameters:
  ///   - result: The command's.
  ///   - count: The number of elements in the batch.
  ///   - elementBytes: The size of each.
  init(result: Int32, count: Int, elementBytes: Int) {
    guard result < 0 else {
      let taken = Int(result) / elementBytes
      self =
        taken >= count ? .whole : taken > 0 ? .partial(taken: taken) : .later(.io)
      return
    }
    let error = Errno(-result)
    if error == .busy {
      self = .notOurs
    } else {
      self = error.mayPass ? .later(error) : .refused(error)
    }
  }
}

extension Errno {
  /// Whether a command that failed so may succeed when it is sent again: memory was short, or the kernel
  /// was interrupted.
  var mayPass: Bool {
    switch self {
    case .again, .interrupted, .noMemory, .noBuffers: true
    default: false
    }
  }
}
