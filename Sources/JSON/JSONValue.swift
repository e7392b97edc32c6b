/// A JSON value: what `--json` prints, a state file holds, and the control socket carries.
///
/// Members keep their order.
package enum JSONValue: Equatable, Sendable {
  case null
  case bool(Bool)
  case integer(Int64)
  /// A whole number above `Int64.max`, and no other: see ``number(_:)``.
  case unsigned(UInt64)
  /// A number with a fraction, as it is printed.
  case fraction(String)
  case string(String)
  case array([JSONValue])
  case object([Member])

  /// One name and value of an object.
  package struct Member: Equatable, Sendable {
    /// The name, not quoted.
    package let name: String
    /// What the name stands for.
    package let value: JSONValue

    /// A member with this name.
    package init(_ name: String, _ value: JSONValue) {
      self.name = name
      self.value = value
    }
  }

  /// The value of the first member with this name; nil for other values and unknown names.
  package subscript(name: String) -> JSONValue? {
    guard case .object(let members) = self else { return nil }
    return members.first { $0.name == name }?.value
  }

  /// The value if it is a string.
  package var string: String? {
    guard case .string(let value) = self else { return nil }
    return value
  }

  /// The value if it is an integer up to `Int64.max`.
  package var integer: Int64? {
    guard case .integer(let value) = self else { return nil }
    return value
  }

  /// The value if it is an integer from 0 to `UInt64.max`.
  package var unsigned: UInt64? {
    switch self {
    case .integer(let value): UInt64(exactly: value)
    case .unsigned(let value): value
    default: nil
    }
  }

  /// The value if it is true or false.
  package var bool: Bool? {
    guard case .bool(let value) = self else { return nil }
    return value
  }

  /// The value if it is an array.
  package var array: [JSONValue]? {
    guard case .array(let values) = self else { return nil }
    return values
  }

  /// The value if it is an object.
  package var members: [Member]? {
    guard case .object(let members) = self else { return nil }
    return members
  }
}
