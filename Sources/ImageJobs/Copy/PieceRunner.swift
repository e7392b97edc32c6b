import BlockCore
import Synchronization

/// A part of a disk that a job works on at once.
struct Piece: Sendable {
  var offset: UInt64
  var length: UInt64
}

/// Works on the pieces of a disk, several at once, and stops between rounds where the image is whole.
struct PieceRunner<Work: Sendable>: Sendable {
  /// The most bytes of a piece whose data is copied.
  static var pieceBytes: UInt64 { 1 << 20 }
  /// Pieces at once; each has a request slot of this number and memory of its own.
  let width: Int
  /// Memory for each piece at once.
  private let buffers: [IOBuffer]

  /// Room for `width` pieces at once, each with `bytes` of memory.
  init(width: Int, bytes: Int) {
    self.width = max(width, 1)
    buffers = (0..<self.width).map { _ in IOBuffer(unfilled: bytes) }
  }

  /// Takes pieces from `next` until there is none left, and carries them out.
  ///
  /// - Parameters:
  ///   - context: Between two rounds it may end the job, and hears how far it has come.
  ///   - next: The next piece with what to do for it, and how much of the disk is done with it: called on
  ///     one task.
  ///   - body: Carries a piece out with memory of its own, and its number among those at once.
  /// - Throws: The first failure of either, or what ends the job; nothing is under way then.
  func run<Item: JobValue>(
    _ context: JobContext<Item>,
    next: () async throws(JobError) -> (piece: Piece, work: Work, reach: UInt64)?,
    body: @escaping @Sendable (Piece, Work, IOBuffer, Int) async throws(JobError) -> Void
  ) async throws(JobError) {
    var isOver = false
    while !isOver {
      var round: [(piece: Piece, work: Work)] = []
      var reach: UInt64?
      while round.count < width {
        guard let found = try await next() else {
          isOver = true
          break
        }
        round.append((found.piece, found.work))
        reach = found.reach
      }
      try await carryOut(round, body)
      if let reach { context.progress.reach(reach) }
      try await context.checkpoint(round.reduce(0) { $0 + $1.piece.length })
    }
  }

  /// All pieces of a round have ended when this returns or throws.
  private func carryOut(
    _ round: [(piece: Piece, work: Work)],
    _ body: @escaping @Sendable (Piece, Work, IOBuffer, Int) async throws(JobError) -> Void
  ) async throws(JobError) {
    let failure = await withTaskGroup(of: JobError?.self) { group in
      for (number, item) in round.enumerated() {
        let buffer = buffers[number]
        group.addTask {
          do throws(JobError) {
            try await body(item.piece, item.work, buffer, number)
            return nil
          } catch { return error }
        }
      }
      var first: JobError?
      for await failure in group { first = first ?? failure }
      return first
    }
    if let failure { throw failure }
  }
}

extension Piece {
  /// The request for the whole piece.
  func request(_ operation: BlockOperation, _ data: DataBuffer = .none) -> BlockRequest {
    BlockRequest(operation, offset: GuestOffset(offset), length: length, data: data)
  }
}
