package import JSON

/// A check's result as qemu-img prints it.
extension CheckResult {
  /// The text for people, with line breaks.
  package var humanText: String {
    verdict + allocation
      + (imageEndOffset == 0 ? "" : "Image end offset: \(imageEndOffset)\n")
  }

  private var verdict: String {
    if corruptions == 0 && leaks == 0 && checkErrors == 0 {
      return "No errors were found on the image.\n"
    }
    var text = ""
    if corruptions > 0 {
      text += """

        \(corruptions) errors were found on the image.
        Data may be corrupted, or further writes to the image may corrupt it.

        """
    }
    if leaks > 0 {
      text += """

        \(leaks) leaked clusters were found on the image.
        This means waste of disk space, but no harm to data.

        """
    }
    if checkErrors > 0 {
      text += "\n\(checkErrors) internal errors have occurred during the check.\n"
    }
    return text
  }

  private var allocation: String {
    guard totalClusters != 0, allocatedClusters != 0 else { return "" }
    func percent(_ part: UInt64, of whole: UInt64) -> String {
      twoPlaces(Double(part) * 100 / Double(whole))
    }
    return "\(allocatedClusters)/\(totalClusters)"
      + " = \(percent(allocatedClusters, of: totalClusters))% allocated,"
      + " \(percent(fragmentedClusters, of: allocatedClusters))% fragmented,"
      + " \(percent(compressedClusters, of: allocatedClusters))% compressed clusters\n"
  }

  /// The JSON object, with a line break; like qemu-img's without most of the counts that are zero.
  package func jsonText(path: String) -> String {
    let file: [JSONValue.Member] = [
      .init("filename", .string(path)), .init("format", .string("qcow2")),
    ]
    return JSONValue.object(members(file)).qemuText + "\n"
  }

  /// The same without what says which image it is.
  package var json: JSONValue { .object(members([])) }

  private func members(_ file: [JSONValue.Member]) -> [JSONValue.Member] {
    var members: [JSONValue.Member] = []
    func add(_ name: String, _ value: UInt64) {
      if value != 0 { members.append(.init(name, .number(value))) }
    }
    add("image-end-offset", imageEndOffset)
    add("compressed-clusters", compressedClusters)
    add("total-clusters", totalClusters)
    add("corruptions", corruptions)
    add("corruptions-fixed", corruptionsFixed)
    members.append(.init("check-errors", .number(checkErrors)))
    add("leaks-fixed", leaksFixed)
    add("leaks", leaks)
    add("allocated-clusters", allocatedClusters)
    members += file
    add("fragmented-clusters", fragmentedClusters)
    return members
  }
}

/// A repair's result as qemu-img prints it.
extension RefcountChanges {
  /// What was wrong other than leaks; new refcount structures are at least one thing.
  package var corruptions: UInt64 {
    counted == 0 && lowered == 0 && hasNewStructures ? 1 : counted
  }

  /// The text for people before the second check, with line breaks.
  package var humanText: String {
    """
    The following inconsistencies were found and repaired:

        \(lowered) leaked clusters
        \(corruptions) corruptions

    Double checking the fixed image now...

    """
  }
}
