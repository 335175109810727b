// Package judge is felix's firewall without a kernel: it keeps the same desired state that the rule drivers are given, says
// what the rules do to the first packet of a connection, and which connections a change may have come to forbid. It is pure.
//
// It is the model of the rules that felix writes, so that what it forbids is what they would drop if the connection began
// now. What policies mean is judged elsewhere, by others (integration/oracle), and compared.
package judge
