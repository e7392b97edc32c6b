package import JSON

/// The parameters of a request while a job reads them.
///
/// What is left in the end is a parameter that the job does not know: a job is not carried out as if it
/// had not been given.
package struct JobArguments {
  private var members: [JSONValue.Member]

  /// The parameters in an object; nil for none.
  package init(_ value: JSONValue?) throws(JobError) {
    guard let value else {
      members = []
      return
    }
    guard let members = value.members else { throw .arguments("arguments are not an object") }
    self.members = members
  }

  /// Takes a text; nil if it is not given.
  package mutating func string(_ name: String) throws(JobError) -> String? {
    try take(name, "a string", \.string)
  }

  /// Takes a whole number from 0 on; nil if it is not given.
  package mutating func unsigned(_ name: String) throws(JobError) -> UInt64? {
    try take(name, "a number from 0 to \(UInt64.max)", \.unsigned)
  }

  /// Takes true or false; nil if it is not given.
  package mutating func bool(_ name: String) throws(JobError) -> Bool? {
    try take(name, "true or false", \.bool)
  }

  /// Takes a list; nil if it is not given.
  package mutating func array(_ name: String) throws(JobError) -> [JSONValue]? {
    try take(name, "a list", \.array)
  }

  /// Takes a value of another form; nil if it is not given.
  package mutating func value<Value>(
    _ name: String, _ expected: String, _ read: (JSONValue) -> Value?
  ) throws(JobError) -> Value? {
    try take(name, expected, read)
  }

  /// Takes a word of an enumeration; nil if it is not given.
  package mutating func word<Word: RawRepresentable & CaseIterable>(
    _ name: String, _ type: Word.Type
  ) throws(JobError) -> Word? where Word.RawValue == String {
    let words = Word.allCases.map(\.rawValue).joined(separator: ", ")
    return try take(name, "one of \(words)") { $0.string.flatMap(Word.init) }
  }

  /// Refuses what has not been taken.
  package func finish() throws(JobError) {
    if let first = members.first { throw .arguments("unknown argument \"\(first.name)\"") }
  }

  /// Null is the same as no argument.
  private mutating func take<Value>(
    _ name: String, _ expected: String, _ read: (JSONValue) -> Value?
  ) throws(JobError) -> Value? {
    guard let index = members.firstIndex(where: { $0.name == name }) else { return nil }
    let value = members.remove(at: index).value
    if value == .null { return nil }
    guard let result = read(value) else {
      throw .arguments("argument \"\(name)\" is \(value.line), expected \(expected)")
    }
    return result
  }
}
