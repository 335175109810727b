package lease

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
)

// A journal is a sequence of frames: the length of a payload and its CRC-32C, both 4 bytes little endian, and the payload,
// an entry in JSON. Entries are numbered without gaps. The first of a file is the whole state, the others are records.
const frameHeader = 8

// entry is the content of a frame.
type entry struct {
	Number uint64 `json:"n"`
	Record
	State *State `json:"state,omitempty"` // of a snapshot
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode appends a record's frame to a journal.
func Encode(to []byte, number uint64, r Record) []byte {
	return frame(to, entry{Number: number, Record: r})
}

// EncodeState is the beginning of a journal: a state, as it is after the record of that number.
func EncodeState(number uint64, s State) []byte {
	return frame(nil, entry{Number: number, Record: Record{Op: opSnapshot}, State: &s})
}

func frame(to []byte, e entry) []byte {
	body, err := json.Marshal(e)
	if err != nil {
		panic("lease: " + err.Error()) // plain data always has an encoding
	}
	to = binary.LittleEndian.AppendUint32(to, uint32(len(body)))
	to = binary.LittleEndian.AppendUint32(to, crc32.Checksum(body, castagnoli))
	return append(to, body...)
}

// ErrDamaged says that a journal, or its end, is not what was written. What came before the damage is good.
var ErrDamaged = errors.New("the journal is damaged")

// Decode reads a journal up to its end or to the first damage, whichever comes first: the state, the number of its last
// record, and how many bytes were good. It fails with ErrDamaged if they are not all; without a state, number is 0.
func Decode(data []byte) (s State, number uint64, good int, err error) {
	for rest := data; len(rest) > 0; {
		e, size, err := readFrame(rest)
		if err != nil {
			return s, number, good, fmt.Errorf("%w after %d bytes: %w", ErrDamaged, good, err)
		}
		switch {
		case good == 0:
			if e.State == nil || e.Op != opSnapshot || e.Number == 0 {
				return s, 0, 0, fmt.Errorf("%w: it does not begin with a state", ErrDamaged)
			}
			if err := e.State.valid(); err != nil {
				return s, 0, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			s = *e.State
		case e.Number != number+1 || e.State != nil:
			return s, number, good, fmt.Errorf("%w after %d bytes: entry %d follows %d", ErrDamaged, good, e.Number, number)
		default:
			if err := s.Apply(e.Record); err != nil {
				return s, number, good, fmt.Errorf("%w after %d bytes: %w", ErrDamaged, good, err)
			}
		}
		number, good, rest = e.Number, good+size, rest[size:]
	}
	if number == 0 {
		return s, 0, 0, fmt.Errorf("%w: it is empty", ErrDamaged)
	}
	return s, number, good, nil
}

func readFrame(data []byte) (e entry, size int, err error) {
	if len(data) < frameHeader {
		return e, 0, errors.New("a frame has no whole header")
	}
	length, sum := binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[4:])
	if uint64(length) > uint64(len(data)-frameHeader) {
		return e, 0, fmt.Errorf("a frame of %d bytes has %d", length, len(data)-frameHeader)
	}
	size = frameHeader + int(length)
	body := data[frameHeader:size]
	if crc32.Checksum(body, castagnoli) != sum {
		return e, 0, errors.New("a checksum does not match")
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, 0, err
	}
	return e, size, nil
}

// valid tells whether a state can have come about.
func (s *State) valid() error {
	if s.Slots == nil {
		s.Slots = map[netip.Addr]Slot{}
	}
	if s.Debts == nil {
		s.Debts = map[string]Debt{}
	}
	if s.Boot == "" || s.Cooldown < 0 || s.Cooldown > maxCooldown {
		return fmt.Errorf("a state of boot %q with a cool-down of %s", s.Boot, s.Cooldown)
	}
	for a, slot := range s.Slots {
		has := slot.Handle != ""
		switch slot.Phase {
		case Lent, Settling:
			if !has || len(slot.Handle) > maxHandle {
				return fmt.Errorf("%s is %s by nobody", a, slot.Phase)
			}
		case Warm, Cooling, Returning:
			if has || s.Epoch == 0 && slot.Phase != Cooling { // what came back after a fence cools until there is a new epoch
				return fmt.Errorf("%s is %s in epoch %d, with handle %q", a, slot.Phase, s.Epoch, slot.Handle)
			}
		default:
			return fmt.Errorf("%s is %q", a, slot.Phase)
		}
		if !proper(a) || slot.Class.Family != family(a) {
			return fmt.Errorf("%s is of class %s", a, slot.Class)
		}
	}
	for h := range s.Debts {
		if h == "" {
			return errors.New("a debt of nobody")
		}
	}
	return nil
}
