// Package oracle says what policy means: whether a packet passes, by the words of the documents and nothing else. It is
// slow on purpose. For each packet it asks every policy, every rule and every endpoint, with no index, no set and no memory,
// so that reading it is enough to see that it is right.
//
// It is the judge of what enforces policy, so it shares nothing with it: it has its own reading of selectors, its own
// reading of Kubernetes' policies, and its own order of evaluation. It takes the types of package api, since those are
// the documents' own words.
//
// A World is what users wrote. New understands it once; Decide answers for one endpoint and direction, Passes for a packet
// on its way through a node.
package oracle
