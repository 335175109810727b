package gobgp

// Connections is for tests that look after connections.
var Connections = connections
