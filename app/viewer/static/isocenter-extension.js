// OHIF's part of a viewer session: who observed what is saved, and when the session ends.
// Loaded after the session's values in app-config.js; nothing here knows a token.
(function isocenter() {
  'use strict';

  const session = window.config.isocenter;
  const OBSERVER_NAME = '121008';
  const POLL_MILLISECONDS = 20000;

  const listOf = value => (value === undefined || value === null ? [] : Array.isArray(value) ? value : [value]);

  // --- writes carry a header that no foreign page can set ---

  const isOwnWrite = (method, url) => {
    const target = new URL(url, window.location.href);
    return method.toUpperCase() === 'POST' && target.origin === window.location.origin && target.pathname.startsWith(`${session.base}/`);
  };

  const open = XMLHttpRequest.prototype.open;
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    const result = open.call(this, method, url, ...rest);
    if (isOwnWrite(String(method), String(url))) {
      this.setRequestHeader(session.guard, session.session);
    }
    return result;
  };

  // --- what is saved names its observer and is not final: signing happens in the report ---

  const nameObserver = items => {
    for (const item of listOf(items)) {
      const concept = listOf(item.ConceptNameCodeSequence)[0];
      if (concept && concept.CodeValue === OBSERVER_NAME && session.observer) {
        item.PersonName = session.observer;
      }
      nameObserver(item.ContentSequence);
    }
  };

  const onBeforeDicomStore = ({ dicomDict, naturalizedReport }) => {
    if (naturalizedReport && naturalizedReport.Modality === 'SR') {
      nameObserver(naturalizedReport.ContentSequence);
      naturalizedReport.PreliminaryFlag = 'PRELIMINARY';
    }
    return dicomDict;
  };

  // --- the end of the session is announced, and then said ---

  let active = false;
  let ended = false;
  let banner = null;

  const element = (name, text, style) => {
    const made = document.createElement(name);
    made.textContent = text;
    Object.assign(made.style, style);
    return made;
  };

  const hideBanner = () => {
    if (banner) {
      banner.remove();
      banner = null;
    }
  };

  const showBanner = (seconds, final) => {
    hideBanner();
    const minutes = Math.max(1, Math.ceil(seconds / 60));
    banner = element('div', '', {
      position: 'fixed', top: '0', left: '0', right: '0', zIndex: '100000', padding: '10px',
      background: '#f5c518', color: '#111', font: '16px system-ui, sans-serif', textAlign: 'center',
    });
    banner.id = 'isocenter-ending';
    banner.setAttribute('role', 'alert');
    const rest = final ? 'Save your work; then open the study again.' : 'Save your work or ';
    banner.append(element('span', `This session ends in ${minutes} min. ${rest}`, {}));
    if (!final) {
      const stay = element('button', 'stay here', { textDecoration: 'underline', font: 'inherit' });
      stay.addEventListener('click', () => ask(true));
      banner.append(stay);
    }
    document.body.append(banner);
  };

  const showEnd = () => {
    ended = true;
    hideBanner();
    const cover = element('div', '', {
      position: 'fixed', inset: '0', zIndex: '100001', display: 'grid', placeItems: 'center',
      background: '#0b0d12', color: '#e8eaf0', font: '18px system-ui, sans-serif', textAlign: 'center',
    });
    cover.id = 'isocenter-ended';
    cover.setAttribute('role', 'alertdialog');
    cover.append(element('p', 'This viewer session has ended. Close this window and open the study again from where you came.', { padding: '2rem', maxWidth: '34rem' }));
    document.body.append(cover);
  };

  const ask = async keep => {
    if (ended) {
      return;
    }
    let answer;
    try {
      answer = await fetch(`${session.base}/status${keep ? '?active=1' : ''}`, { cache: 'no-store' });
    } catch {
      return; // Unreachable is not ended: the next round asks again.
    }
    if (answer.status === 401) {
      showEnd();
    } else if (answer.ok) {
      const status = await answer.json();
      if (status.ends_in <= session.warnSeconds) {
        showBanner(status.ends_in, status.final);
      } else {
        hideBanner();
      }
    }
  };

  const watch = () => {
    for (const kind of ['pointerdown', 'keydown', 'wheel']) {
      window.addEventListener(kind, () => { active = true; }, { capture: true, passive: true });
    }
    window.setInterval(() => {
      const keep = active;
      active = false;
      ask(keep);
    }, POLL_MILLISECONDS);
    document.addEventListener('visibilitychange', () => {
      if (document.visibilityState === 'visible') {
        ask(false);
      }
    });
  };

  window.config.httpErrorHandler = error => {
    if (error && error.status === 401) {
      ask(false);
    }
  };

  window.config.extensions = [
    {
      id: 'isocenter',
      preRegistration({ servicesManager }) {
        const { customizationService } = servicesManager.services;
        customizationService.setCustomizations(
          { 'ohif.tours': { $set: [] }, onBeforeDicomStore: { $set: onBeforeDicomStore } },
          customizationService.Scope.Global
        );
        watch();
      },
    },
  ];
})();
