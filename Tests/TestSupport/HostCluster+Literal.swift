public import BlockCore

/// A test names clusters of the images that it made itself: a number in its text is one.
extension HostCluster: ExpressibleByIntegerLiteral {
  public init(integerLiteral number: UInt64) { self.init(number) }
}
