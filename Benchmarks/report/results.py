"""What was measured: sections of samples, by subject and work."""
import json
import statistics


class Section:
    def __init__(self, name, content):
        self.name = name
        self.unit = content["unit"]
        self.command = content["command"]
        self.is_quick = content["quick"]
        self.facts = content["facts"]
        self.samples = content["samples"]

    def median(self, subject, work):
        """None if it was not measured."""
        values = self.samples.get(subject, {}).get(work)
        return statistics.median(values) if values else None

    def ratio(self, subject, base, work, base_work=None):
        above, below = self.median(subject, work), self.median(base, base_work or work)
        return above / below if above is not None and below else None

    def subjects(self):
        return list(self.samples)

    def works(self):
        """In the order in which they were measured."""
        seen = {}
        for works in self.samples.values():
            seen.update(dict.fromkeys(works))
        return list(seen)

    def rounds(self):
        counts = {len(values) for works in self.samples.values() for values in works.values()}
        return str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"

    def spread(self):
        """The median, over all rows, of (largest - smallest) / median."""
        spreads = []
        for works in self.samples.values():
            for values in works.values():
                middle = statistics.median(values)
                if len(values) > 1 and middle > 0:
                    spreads.append((max(values) - min(values)) / middle)
        return statistics.median(spreads) if spreads else 0.0


class Results:
    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.sections = {name: Section(name, content) for name, content in json.load(file).items()}

    def median(self, section, subject, work):
        return self.sections[section].median(subject, work) if section in self.sections else None

    def ratio(self, section, *words):
        return self.sections[section].ratio(*words) if section in self.sections else None
