package api

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ASNumber is a BGP autonomous system number, 4 bytes (RFC 6793). Documents may write it as a number (64512), as a
// string of one ("64512"), or dotted ("1.10", asdot+ of RFC 5396); it is stored as a number.
//
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:Format=""
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:MaxLength=11
// +kubebuilder:validation:Pattern=`^([0-9]{1,9}|[1-3][0-9]{9}|4[01][0-9]{8}|42[0-8][0-9]{7}|429[0-3][0-9]{6}|4294[0-8][0-9]{5}|42949[0-5][0-9]{4}|429496[0-6][0-9]{3}|4294967[01][0-9]{2}|42949672[0-8][0-9]|429496729[0-5]|([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])\.([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))$`
// +kubebuilder:validation:XValidation:rule="type(self) != int || (self >= 0 && self <= 4294967295)",message="is not an AS number: write 1 to 4294967295, or two 16-bit halves such as 1.10"
type ASNumber uint32

// ParseASNumber reads a number or the dotted form, whose halves have 16 bits each.
func ParseASNumber(s string) (ASNumber, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		return ASNumber(n), nil
	}
	if high, low, ok := strings.Cut(s, "."); ok {
		h, err1 := strconv.ParseUint(high, 10, 16)
		l, err2 := strconv.ParseUint(low, 10, 16)
		if err1 == nil && err2 == nil {
			return ASNumber(h<<16 | l), nil
		}
	}
	return 0, fmt.Errorf("%q is not an AS number: write 1 to 4294967295, or two 16-bit halves such as \"1.10\"", s)
}

// UnmarshalJSON takes a number or a string.
func (a *ASNumber) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b)
	if err != nil {
		return err
	}
	n, err := ParseASNumber(text)
	if err != nil {
		return err
	}
	*a = n
	return nil
}

// String is the plain decimal number.
func (a ASNumber) String() string { return strconv.FormatUint(uint64(a), 10) }

// Port is a port, an inclusive range of ports, or the name of an endpoint's port. With a Name, First and Last are 0.
// JSON: 80, "8000:8080" or "http".
//
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:MaxLength=15
// +kubebuilder:validation:Pattern=`^(0*(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})(:0*(6553[0-5]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3}))?|[0-9]{0,13}[-a-z]([-a-z0-9]{0,13}[a-z0-9])?)$`
// +kubebuilder:validation:XValidation:rule="type(self) == int ? self >= 1 && self <= 65535 : !self.contains(':') || int(self.split(':')[0]) <= int(self.split(':')[1])",message="is not a port: write 1 to 65535, a range such as 8000:8080 with the lower port first, or a name"
type Port struct {
	First uint16 `json:"-"`
	Last  uint16 `json:"-"`
	Name  string `json:"-"`
}

var portName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

// SinglePort is the Port of one number.
func SinglePort(n uint16) Port { return Port{First: n, Last: n} }

// ParsePort reads a number, a range lo:hi or a name.
func ParsePort(s string) (Port, error) {
	if digits(s) {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return Port{}, fmt.Errorf("port %s is out of range: write 1 to 65535", s)
		}
		return SinglePort(uint16(n)), nil
	}
	if low, high, ok := strings.Cut(s, ":"); ok {
		l, err1 := strconv.ParseUint(low, 10, 16)
		h, err2 := strconv.ParseUint(high, 10, 16)
		if err1 != nil || err2 != nil {
			return Port{}, fmt.Errorf("%q is not a port range: write low:high with ports 1 to 65535, such as \"8000:8080\"", s)
		}
		if l > h {
			return Port{}, fmt.Errorf("port range %q runs backwards: write the lower port first", s)
		}
		return Port{First: uint16(l), Last: uint16(h)}, nil
	}
	if !portName.MatchString(s) {
		return Port{}, fmt.Errorf("%q is not a port: write a number, a range such as \"8000:8080\", or a port name of letters, digits, _ . -", s)
	}
	return Port{Name: s}, nil
}

// IsNamed tells whether the port is given by name.
func (p Port) IsNamed() bool { return p.Name != "" }

// String is the form used in documents.
func (p Port) String() string {
	switch {
	case p.Name != "":
		return p.Name
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	default:
		return fmt.Sprintf("%d:%d", p.First, p.Last)
	}
}

// MarshalJSON gives a number for a single port, a string otherwise.
func (p Port) MarshalJSON() ([]byte, error) {
	if p.Name == "" && p.First == p.Last {
		return json.Marshal(p.First)
	}
	return json.Marshal(p.String())
}

// UnmarshalJSON takes a number or a string.
func (p *Port) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b)
	if err != nil {
		return err
	}
	parsed, err := ParsePort(text)
	if err != nil {
		return err
	}
	*p = parsed
	return nil
}

// Protocol is an IP protocol: one of the names below, or a number from 1 to 255 in decimal. Names are read in any case (the
// schema knows the usual spelling and lower case). JSON: "TCP" or 47.
//
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:MaxLength=7
// +kubebuilder:validation:XValidation:rule="type(self) != int || (self >= 1 && self <= 255)",message="is not a protocol: write a name or a number from 1 to 255"
// +kubebuilder:validation:Pattern=`^([1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5]|TCP|tcp|UDP|udp|ICMP|icmp|ICMPv6|icmpv6|SCTP|sctp|UDPLite|udplite)$`
type Protocol string

// The protocols that have names.
const (
	ProtocolTCP     Protocol = "TCP"
	ProtocolUDP     Protocol = "UDP"
	ProtocolICMP    Protocol = "ICMP"
	ProtocolICMPv6  Protocol = "ICMPv6"
	ProtocolSCTP    Protocol = "SCTP"
	ProtocolUDPLite Protocol = "UDPLite"
)

// ParseProtocol gives a name its usual spelling and leaves anything else as it is (Number tells whether it is valid).
func ParseProtocol(s string) Protocol {
	for _, p := range []Protocol{ProtocolTCP, ProtocolUDP, ProtocolICMP, ProtocolICMPv6, ProtocolSCTP, ProtocolUDPLite} {
		if strings.EqualFold(s, string(p)) {
			return p
		}
	}
	return Protocol(s)
}

// Number is the protocol's number in the IP header; ok is false if the protocol is neither a known name nor 1 to 255.
func (p Protocol) Number() (n uint8, ok bool) {
	switch ParseProtocol(string(p)) {
	case ProtocolTCP:
		return 6, true
	case ProtocolUDP:
		return 17, true
	case ProtocolICMP:
		return 1, true
	case ProtocolICMPv6:
		return 58, true
	case ProtocolSCTP:
		return 132, true
	case ProtocolUDPLite:
		return 136, true
	}
	v, err := strconv.ParseUint(string(p), 10, 8)
	return uint8(v), err == nil && v > 0
}

// SupportsPorts tells whether rules may match ports of it: TCP, UDP and SCTP.
func (p Protocol) SupportsPorts() bool {
	n, ok := p.Number()
	return ok && (n == 6 || n == 17 || n == 132)
}

// MarshalJSON gives a number for a number, a string for a name.
func (p Protocol) MarshalJSON() ([]byte, error) { return marshalNumberOrString(string(p)) }

// UnmarshalJSON takes a number or a string.
func (p *Protocol) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b)
	if err != nil {
		return err
	}
	*p = ParseProtocol(text)
	return nil
}

// DSCP is a differentiated services code point (RFC 2474): 0 to 63 in decimal, or a name such as EF, AF11 or CS3. JSON:
// 46 or "EF".
//
// +kubebuilder:validation:Type=""
// +kubebuilder:validation:XIntOrString
// +kubebuilder:validation:MaxLength=4
// +kubebuilder:validation:XValidation:rule="type(self) != int || (self >= 0 && self <= 63)",message="is not a DSCP: write 0 to 63, or a name such as EF, AF11 or CS3"
// +kubebuilder:validation:Pattern=`^([0-9]|[1-5][0-9]|6[0-3]|(?i:DF|EF|AF[1-4][1-3]|CS[0-6]))$`
type DSCP string

// Number is the code point; ok is false if the text is neither a known name nor 0 to 63.
func (d DSCP) Number() (n uint8, ok bool) {
	s := strings.ToUpper(string(d))
	switch {
	case s == "DF":
		return 0, true
	case s == "EF": // RFC 3246
		return 46, true
	case len(s) == 4 && s[:2] == "AF" && s[2] >= '1' && s[2] <= '4' && s[3] >= '1' && s[3] <= '3': // RFC 2597
		return (s[2]-'0')<<3 | (s[3]-'0')<<1, true
	case len(s) == 3 && s[:2] == "CS" && s[2] >= '0' && s[2] <= '6': // RFC 2474
		return (s[2] - '0') << 3, true
	}
	v, err := strconv.ParseUint(s, 10, 8)
	return uint8(v), err == nil && v <= 63
}

// MarshalJSON gives a number for a number, a string for a name.
func (d DSCP) MarshalJSON() ([]byte, error) { return marshalNumberOrString(string(d)) }

// UnmarshalJSON takes a number or a string.
func (d *DSCP) UnmarshalJSON(b []byte) error {
	text, err := numberOrString(b)
	if err != nil {
		return err
	}
	*d = DSCP(text)
	return nil
}

// numberOrString reads a JSON number or string as text.
func numberOrString(b []byte) (string, error) {
	if len(b) > 0 && b[0] == '"' {
		var s string
		err := json.Unmarshal(b, &s)
		return s, err
	}
	if s := string(b); digits(s) {
		return s, nil
	}
	return "", fmt.Errorf("%s is neither a whole number nor a string", b)
}

func marshalNumberOrString(s string) ([]byte, error) {
	if digits(s) && (s == "0" || s[0] != '0') {
		return []byte(s), nil
	}
	return json.Marshal(s)
}

// digits tells whether s is a plain decimal number.
func digits(s string) bool {
	return s != "" && !slices.ContainsFunc([]byte(s), func(c byte) bool { return c < '0' || c > '9' })
}
