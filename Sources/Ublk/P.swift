// The ublk planes.
