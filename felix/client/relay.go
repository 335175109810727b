package client

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	felixv1 "github.com/muslin-net/muslin/proto/muslin/felix/v1"
)

// DumpQuestion is Dump as typha relays it to a node; ReadDump reads the answer.
func DumpQuestion(sections []string, differencesOnly bool) []byte {
	body, err := proto.Marshal(&felixv1.DumpRequest{Sections: sections, DifferencesOnly: differencesOnly})
	if err != nil { // only for text that is no UTF-8
		return nil
	}
	return body
}

// ReadDump reads the answer to DumpQuestion.
func ReadDump(body []byte) ([]DumpEntry, error) {
	m := &felixv1.DumpResponse{}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("answer of felix: %w", err)
	}
	return entriesOf(m), nil
}

func entriesOf(m *felixv1.DumpResponse) []DumpEntry {
	out := make([]DumpEntry, len(m.GetEntries()))
	for i, e := range m.GetEntries() {
		out[i] = DumpEntry{e.GetSection(), e.GetKey(), e.GetDesired(), e.GetActual(), e.GetError()}
	}
	return out
}
